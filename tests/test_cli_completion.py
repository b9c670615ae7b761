"""Completion in shells, by typer's own scripts: each asks the program, with what is typed in variables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.testing

from tests.commands import environment, invoke

SHELLS = {
    "bash": 'source "$1"; COMP_WORDS=(blip2cap $2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
    '_blip2cap_completion blip2cap; printf "%s\\n" "${COMPREPLY[@]}"',
    "zsh": 'compdef() {}; _arguments() { print -r -- "$@" }; source "$1"; words=(blip2cap ${=2}); CURRENT=$#words; '
    "_blip2cap_completion",
    "fish": 'source $argv[2]; complete -C "blip2cap $argv[3]"',
}


def completed(shell: str, typed: str) -> str:
    """Return what the program offers for the last word."""
    words = f"blip2cap {typed}"
    variables = {
        "_BLIP2CAP_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    result = invoke(env=variables)
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_options_and_their_values_are_completed(shell: str) -> None:
    assert "caption" in completed(shell, "ca")
    assert "vqa" not in completed(shell, "ca")
    offered = completed(shell, "caption --num")
    assert all(flag in offered for flag in ("--num-beams", "--num-captions"))
    assert "--model" not in offered
    assert all(name in completed(shell, "caption --quantize i") for name in ("int8", "int8-dynamic"))


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_themselves_take_the_script(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # this process is no child of that shell
    vars(typer.testing)["_get_command"].cache_clear()  # the commands are made for that variable
    script = invoke("--show-completion", shell)
    assert script.exit_code == 0
    (tmp_path / "script").write_text(script.stdout)
    ours = tmp_path / "blip2cap"
    ours.write_text(f"#!{sys.executable}\nfrom blip2cap.cli import app\napp()\n")
    ours.chmod(0o755)
    done = subprocess.run(
        [program, "-c", SHELLS[shell], "x", str(tmp_path / "script"), "caption --num-c"],
        capture_output=True,
        text=True,
        env=environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}"),
    )
    assert "--num-captions" in done.stdout, done.stderr
    assert "--num-beams" not in done.stdout
