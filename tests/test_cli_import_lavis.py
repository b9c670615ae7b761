"""`blip2cap import-lavis`: what it prints, its exit codes, and captions with what it has made."""

from __future__ import annotations

from pathlib import Path

import torch

from blip2cap.models.checkpoint import TINY, TINY_ITM
from tests.commands import TINY as TINY_IN_FLOAT32
from tests.commands import invoke, read_rows
from tests.lavis import clear_key_biases, lavis_state, read_network, save, without_frozen


def test_a_folder_that_was_imported_captions_like_its_original(here: Path, scenes: Path) -> None:
    network = read_network(TINY)
    clear_key_biases(network)
    save(here / "checkpoint_30.pth", without_frozen(lavis_state(network, "opt"), "opt"))
    result = invoke("import-lavis", "checkpoint_30.pth", "--base", "tiny", "-o", "mine")
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "vision encoder and language model: not in the checkpoint, taken from tiny",
        "left out, as transformers has no place for them: Qformer.bert.embeddings.position_ids",
        "mine: 235 tensors, 91 of them from checkpoint_30.pth (blip2_opt)",
    ]
    invoke("caption", scenes, *TINY_IN_FLOAT32, "-o", "tiny.jsonl", "--quiet")
    invoke("caption", scenes, "--model", "mine", "--dtype", "float32", "-o", "mine.jsonl", "--quiet")
    captions = [[row["text"] for row in read_rows(here / name)] for name in ("tiny.jsonl", "mine.jsonl")]
    assert captions[0] == captions[1]
    assert len(captions[0]) == 5


def test_a_checkpoint_of_stage_1_matches_like_its_original(here: Path, scenes: Path) -> None:
    network = read_network(TINY_ITM)
    clear_key_biases(network)
    save(here / "checkpoint_9.pth", lavis_state(network, "matching"))
    result = invoke("import-lavis", "checkpoint_9.pth", "--base", "tiny-itm", "-o", "mine", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    text = ("--text", "a red car in the snow")
    for model in ("tiny-itm", "mine"):
        invoke("match", scenes, "--model", model, "--dtype", "float32", *text, "-o", f"{model}.jsonl", "--quiet")
    scores = [[(row["itm"], row["itc"]) for row in read_rows(here / f"{name}.jsonl")] for name in ("tiny-itm", "mine")]
    torch.testing.assert_close(*map(torch.tensor, scores), atol=1e-5, rtol=0)
    assert len(scores[0]) == 5


def test_errors_have_their_exit_codes(here: Path) -> None:
    assert invoke("import-lavis", "none.pth", "--base", "tiny", "-o", "out").exit_code == 2
    torch.save({"model": {}}, here / "empty.pth")
    refused = invoke("import-lavis", "empty.pth", "--base", "tiny", "-o", "out")
    assert refused.exit_code == 4
    assert refused.stderr.startswith("blip2cap: empty.pth: holds no parameters.")
    (here / "out").mkdir()
    (here / "out" / "notes.txt").touch()
    assert invoke("import-lavis", "empty.pth", "--base", "tiny", "-o", "out").exit_code == 5
