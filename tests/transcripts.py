"""Transcripts of command lines: what they print, their exit codes, and every file that they leave.

`python -m tests.transcripts` writes them to tests/golden/transcripts; `test_transcripts.py` compares. What differs from
run to run (folders, times, rates, identifiers drawn at random) is replaced by a word.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
from typer.testing import CliRunner

from blip2cap.cli import app
from tests.archives import make_tar
from tests.commands import draw_scenes

GOLDEN = Path(__file__).parent / "golden" / "transcripts"
T = "-m tiny --dtype float32"
Q = '-q "is it day or night?" -q "how many birds are there?"'

SCENARIOS: Mapping[str, Sequence[str]] = {
    "folder": [f"caption imgs {T}", f"caption imgs {T}", "status captions.jsonl", "show captions.jsonl"],
    "json": [f"caption imgs {T} --json", f"caption imgs {T} --json", "status captions.jsonl --json"],
    "quiet": [f"caption imgs {T} --quiet", f"caption imgs {T} --quiet --overwrite"],
    "stream": [f"caption imgs {T} -o -", f"caption - {T} -o - < list.txt", f"caption -0 - {T} -o - < list0.txt"],
    "lists": [f"caption --files-from list.txt imgs/2.png {T}", f"caption imgs imgs/sub {T} -o two.jsonl"],
    "patterns": [f"caption imgs --include *.png --exclude sub/ {T}", f"caption imgs --include *.tiff {T}"],
    "tar": [f"caption a.tar a.tar.gz a.tar.bz2 {T}", f"caption cut.tar {T} -o cut.jsonl"],
    "table": [f"caption t.parquet --image-column image {T}", f"caption t.parquet --image-column x {T} -o x.jsonl"],
    "braces": [f"caption imgs/{{0..2}}.png {T}", f"caption imgs/{{0..9}}.png {T}"],
    "failures": [
        f"caption mixed {T} --verbose",
        "status captions.jsonl",
        f"caption mixed {T} --retry-failed --json",
        "mend",
        f"caption mixed {T} --retry-failed",
        f"caption mixed {T} --retry-failed --dry-run",
    ],
    "resume": [
        f"caption imgs {T} --limit 2",
        f"caption imgs {T} --dry-run --json",
        "tear captions.jsonl",
        f"caption imgs {T}",
    ],
    "damage": [f"caption imgs {T} --limit 2", "damage captions.jsonl", f"caption imgs {T}", "show captions.jsonl"],
    "settings": [
        f"caption imgs {T} --limit 2",
        f"caption imgs {T} --prompt w",
        f"vqa imgs {T} {Q} -o captions.jsonl",
        f"caption imgs {T} --prompt w --dry-run",
        f"caption imgs/sub {T}",
        f"caption imgs {T} --limit 1 --prompt w --overwrite",
    ],
    "vqa": [
        f"vqa imgs {T} {Q}",
        f"vqa imgs {T} {Q} -q yes? --json",
        "show answers.jsonl --limit 4",
        f"vqa imgs {T} --questions questions.txt -o q.parquet",
    ],
    "parquet": [
        f"caption mixed {T} -o c.parquet",
        f"caption imgs mixed {T} -o c2.parquet --limit 3",
        "mend",
        f"caption mixed {T} -o c.parquet --retry-failed",
        "status c.parquet",
        "show c.parquet",
        f"caption mixed {T} -o c.parquet --dry-run",
    ],
    "parts": [
        f"caption mixed {T} -o parts/ --part-size 2 --dry-run",
        f"caption mixed {T} -o parts/ --part-size 2 --shard 1/2",
        "status parts",
        f"caption mixed {T} -o parts/ --dry-run --json",
        f"caption mixed {T} -o parts/ --part-size 3",
        "mend",
        f"caption mixed {T} -o parts/ --retry-failed --json",
        f"caption mixed {T} -o parts/",
        "status parts --json",
        "show parts",
        f"caption mixed {T} -o parts/ --prompt w",
        f"caption a.tar.gz {T} -o streamed/",
    ],
    "answers_in_parts": [f"vqa imgs {T} {Q} -o parts/ --part-size 3", f"vqa imgs {T} -q no? -o parts/"],
    "captions": [
        f"caption imgs {T} --num-captions 2 --num-beams 3 -o beams.jsonl",
        f"caption imgs {T} --num-captions 2 --temperature 1.5 --seed 3 -o samples.parquet",
        f"caption imgs {T} --num-captions 2",
    ],
    "rules": [f'caption imgs {T} --loop-guard --trim-sentence --strip a --prompt "{{stem}} a photo" --json'],
    "isolate": [f"caption mixed {T} --isolate --timeout 50 --threads 1"],
    "export": [
        f"caption mixed {T}",
        *(f"export captions.jsonl --to {to} -o out/{to}" for to in ("txt", "xmp", "webdataset")),
        *(f"export captions.jsonl --to {to} -o out.{to}" for to in ("csv", "parquet", "jsonl", "coco", "labelstudio")),
        "export captions.jsonl --to kohya -o meta_cap.json --prefix sub/=far --suffix .",
        "export captions.jsonl --to imagefolder",
        "export captions.jsonl --to txt --existing append --json",
        "export captions.jsonl --to csv -o out.csv",
    ],
    "export_answers": [
        f"vqa imgs {T} {Q} -o a.parquet",
        "export a.parquet --to coco -o a.json",
        "export a.parquet --to txt",
        'export a.parquet --to txt --question "is it day or night?" --json',
        "export a.parquet --to csv -o a.csv --column said",
    ],
    "export_parts": [
        f"caption imgs {T} -o parts/ --part-size 2 --shard 1/2",
        "export parts --to jsonl -o p.jsonl",
        "export parts --to parquet -o p.parquet --json",
    ],
    "show_stdin": [
        f"caption imgs {T} --quiet",
        "show - < captions.jsonl",
        "export - --to csv -o s.csv < captions.jsonl",
    ],
    "overwrite": [f"caption imgs {T} --limit 1", f"caption imgs {T} --overwrite", f"caption imgs {T} -o - --overwrite"],
    "config": ["caption imgs --config options.toml --dtype float32", "caption imgs --config bad.toml"],
    "tiny_prompt": [f'caption imgs {T} --prompt "a photo of"', f"caption imgs {T} --prompt {{x}}"],
    "usage": [
        "caption",
        "caption nothing",
        "caption empty",
        "caption imgs -o captions.txt",
        "caption imgs -m nowhere/",
        "caption imgs --top-p 0.5",
        "caption imgs --quiet --verbose",
        "caption imgs --shard 1/2",
        "caption imgs -o parts/ --overwrite",
        "caption imgs --batch-size 0",
        "vqa imgs",
        "vqa imgs -q a -q a",
        "status nothing",
        "status list.txt",
        "show nothing",
        "export list.txt --to csv -o x.csv",
        "caption https://localhost/x.jpg",
    ],
    "batch_size": [f"caption imgs {T} --batch-size 2 --decode exact --max-new-tokens 3 --min-new-tokens 3"],
    "samples": [f"caption samples {T}", "show captions.jsonl"],
}
"""Command lines that run one after the other in a folder of their own, as a shell reads them. `mend`, `tear` and
`damage` are no commands: they make a bad image good, cut the last line of a file, and spoil its first."""


def prepare(folder: Path) -> None:
    """Fill a folder with the files that the scenarios read."""
    draw_scenes(folder / "imgs", 0)
    for number in range(3):
        draw_scenes(folder, 1, first_seed=number)
        (folder / f"{number:03}.png").rename(folder / "imgs" / f"{number}.png")
    draw_scenes(folder / "imgs" / "sub", 1, first_seed=3)
    (folder / "imgs" / ".hidden.png").touch()
    (folder / "imgs" / "notes.txt").write_text("no image")
    shutil.copytree(folder / "imgs", folder / "mixed")
    shutil.copy(folder / "imgs" / "1.png", folder / "mixed" / "1 кот.png")
    data = (folder / "imgs" / "0.png").read_bytes()
    (folder / "mixed" / "bad.png").write_bytes(b"no image")
    (folder / "mixed" / "cut.png").write_bytes(data[: len(data) // 2])
    os.mkfifo(folder / "mixed" / "pipe.png")
    (folder / "empty").mkdir()
    names = ["imgs/0.png", "imgs/sub/003.png", "gone.png"]
    (folder / "list.txt").write_text("\n".join(names))
    (folder / "list0.txt").write_text("\0".join(names))
    members = {f"{index}.png": (folder / "imgs" / f"{index}.png").read_bytes() for index in range(2)}
    plain = make_tar(folder / "a.tar", {**members, "a.txt": b"a", "bad.png": b"bad"}).read_bytes()
    (folder / "a.tar.gz").write_bytes(gzip.compress(plain))
    (folder / "a.tar.bz2").write_bytes(bz2.compress(plain))
    (folder / "cut.tar").write_bytes(plain[: 1000 + len(members["0.png"])])
    images = [*members.values(), b"bad"]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "other": pa.array(images)}), folder / "t.parquet")
    (folder / "questions.txt").write_text("is there a house?\n\nis it day or night?\n")
    (folder / "options.toml").write_text('model = "tiny"\n[caption]\nprompt = "a photo of"\nnum-beams = 2\n')
    (folder / "bad.toml").write_text("[caption]\nprompts = 1\n")
    shutil.copytree(Path(__file__).parent.parent / "sample_images", folder / "samples")


def change(what: str, *names: str) -> None:
    """Make the change between two commands."""
    if what == "mend":
        shutil.copy("imgs/2.png", "mixed/bad.png")
    content = Path(names[0]).read_bytes() if names else b""
    if what == "tear":
        Path(names[0]).write_bytes(content[:-7])
    elif what == "damage":
        Path(names[0]).write_bytes(b"#" + content)


def transcript(commands: Sequence[str]) -> str:
    """Run commands in a new folder; return what they print and leave there."""
    with tempfile.TemporaryDirectory() as name, chdir(name):
        here = Path(name).resolve()
        prepare(here)
        before = _files(here)
        lines: list[str] = []
        for command in commands:
            lines += [f"$ {command}", *_run(command), ""]
        after = _files(here)
        for path in sorted(before - after):
            lines.append(f"gone: {path.relative_to(here)}")
        for path in sorted(after - before):
            lines += [f"--- {path.relative_to(here)}", *_content(path)]
        return _plain("\n".join(lines), here) + "\n"


def _run(command: str) -> list[str]:
    command, _, stdin = command.partition(" < ")
    words = [(quoted or word) for quoted, word in re.findall(r'"([^"]*)"|(\S+)', command)]
    if words[0] in ("mend", "tear", "damage"):
        change(*words)
        return []
    data = Path(stdin).read_bytes() if stdin else b""
    with mock.patch.object(sys, "argv", ["blip2cap", *words]):
        result = CliRunner().invoke(app, words, input=data, env={"COLUMNS": "100"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return [*result.stdout.splitlines(), *(f"! {line}" for line in result.stderr.splitlines()), f"= {result.exit_code}"]


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


def _content(path: Path) -> list[str]:
    data = path.read_bytes()
    if data[:4] == b"PAR1":
        return _table(path)
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            return [f"{member.name} {member.size}" for member in tar]
    return data.decode("utf-8", "backslashreplace").replace("\r", "\\r").split("\n")


def _table(path: Path) -> list[str]:
    table = pq.read_table(path)
    metadata = table.schema.metadata or {}
    file = pq.read_metadata(path).metadata or {}
    known = {key.decode(): json.loads(value) for key, value in {**file, **metadata}.items() if b"blip2cap" in key}
    rows = [json.dumps(row, ensure_ascii=False, default=lambda value: repr(value)) for row in table.to_pylist()]
    return [
        str(table.schema.remove_metadata()),
        *json.dumps(known, indent=1, ensure_ascii=False).splitlines(),
        *rows,
    ]


def _plain(text: str, here: Path) -> str:
    """Replace everything that differs from run to run."""
    for pattern, word in _VARYING:
        text = pattern.sub(word, text)
    return text.replace(str(here), "HERE")


_VARYING: Sequence[tuple[re.Pattern[str], Any]] = [
    (re.compile(r"[\d.]+ images/s"), "N images/s"),
    (re.compile(r'("(?:seconds|images_per_s)": )[\d.]+'), r"\1N"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d"), "TIME"),
    (re.compile(r'("(?:id|plan)": )"[0-9a-f]{16}"'), r'\1"ID"'),
    (re.compile(r"work/[0-9a-f]{16}/"), "work/ID/"),
    (re.compile(r"sha256:[0-9a-f]{16}"), "sha256:COMMIT"),
]


def main() -> None:
    """Write the transcripts, all or those that are named."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or SCENARIOS:
        (GOLDEN / f"{name}.txt").write_text(transcript(SCENARIOS[name]), encoding="utf-8")


if __name__ == "__main__":
    main()
