"""`caption` and `vqa` with a real server: `transformers serve`, and a small random LLaVA made here."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import draw_scenes, invoke, read_rows

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")),
        reason="transformers serve needs fastapi, uvicorn and openai",
    ),
]
SIDE = 28
_START_S = 90.0
_TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }}: {% if turn['content'] is string %}{{ turn['content'] }}{% else %}"
    "{% for part in turn['content'] %}{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %} {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def save_llava(folder: Path) -> Path:
    """Save a LLaVA of two layers with random weights, and a tokenizer of bytes."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        CLIPImageProcessorPil,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in ("<pad>", "<s>", "</s>", "<image>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["describe the image user assistant"],
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
        fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_TEMPLATE,
    )
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config={"model_type": "clip_vision_model", "image_size": SIDE, "patch_size": 14, **layers},
            text_config={"model_type": "llama", "vocab_size": len(fast), "max_position_embeddings": 512, **layers},
            image_token_index=processor.image_token_id,
        )
    )
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Start the server; return its address, and the folder of the model, which is its name there."""
    folder = save_llava(tmp_path_factory.mktemp("llava"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", "--host", "127.0.0.1"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with open(folder.parent / "server.log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu"], env=environment, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + _START_S
        while True:
            assert process.poll() is None, (folder.parent / "server.log").read_text()
            assert time.monotonic() < deadline, (folder.parent / "server.log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.terminate()
        process.wait()


def test_a_real_server_captions_and_answers(server, here):
    url, folder = server
    pictures = draw_scenes(here / "pictures", 6)
    options = ("-m", f"openai:{folder}", "--base-url", url, "--max-new-tokens", 8, "--concurrency", 2)
    result = invoke("caption", pictures, *options, "--json")
    assert result.exit_code == 0, result.stderr
    rows = read_rows(here / "captions.jsonl")
    assert [row["status"] for row in rows] == ["ok"] * 6
    assert all(row["num_tokens"] > 0 for row in rows)
    facts = json.loads(result.stdout)
    assert facts["prompt_tokens"] > 6 * (SIDE // 14) ** 2
    assert facts["tokens"] == sum(row["num_tokens"] for row in rows)
    again = invoke("caption", pictures, *options, "-o", "again.jsonl")
    assert again.exit_code == 0, again.stderr
    assert read_rows(here / "again.jsonl") == rows
    result = invoke("vqa", pictures, *options, "-q", "What is it?", "--system", "Be brief.")
    assert result.exit_code == 0, result.stderr
    result = invoke("caption", pictures, *options, "--temperature", 1, "--num-captions", 2, "-o", "samples.jsonl")
    assert result.exit_code == 0, result.stderr
    assert all(len(row["texts"]) == 2 for row in read_rows(here / "samples.jsonl"))


def test_a_model_that_it_does_not_have_is_an_error_with_its_words(server, here):
    url, _ = server
    pictures = draw_scenes(here / "pictures", 1)
    result = invoke("caption", pictures, "-m", f"openai:{here / 'missing'}", "--base-url", url)
    assert result.exit_code == 4, result.stderr
    assert f"openai:{here / 'missing'} at {url}" in result.stderr
    assert not (here / "captions.jsonl.run.json").exists()
