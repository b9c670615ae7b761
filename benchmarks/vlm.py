"""Texts of a small LLaVA with random weights: this package against batched `generate` of transformers, alternating.

Both get the same images and prompts, the same batch, and the network that was loaded once. Times are of the processor,
with one thread: on a machine where others work too, those of the clock say little. `python -m benchmarks.vlm`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPImageProcessorPil, LlavaProcessor

from blip2cap.bench.plain_transformers import prepare
from blip2cap.decode.image import Pixels
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.checkpoint import find
from blip2cap.models.vlm.load import load
from blip2cap.models.vlm.model import Vlm
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from tests.vlm_checkpoints import make_tokenizer, template

CAPTION = ("Describe this image.",)
DETAILED = ("Describe this image in detail.",)
QUESTIONS = (
    *("what is it?", "how many are there in this image?", "what is the colour of it?"),
    "is there a user in this image, and what does the user describe in a few words?",
)
_WIDTH: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
}


def make_llava(folder: Path) -> None:
    """Save a LLaVA of 6 layers of width 256, with 256 tokens for an image of 224 x 224."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(image_token="<image>")
    images = CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>"),
    )
    text = _WIDTH | {"model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 2048}
    config = AutoConfig.for_model(
        "llava",
        vision_config=_WIDTH | {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 14},
        text_config=text,
        image_token_index=processor.image_token_id,
    )
    network = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.08)
    network.generation_config.eos_token_id = [2]
    network.save_pretrained(folder)
    processor.save_pretrained(folder)


def plain(
    model: Vlm, images: Sequence[Pixels], prompts: Sequence[Prompt], options: GenerateOptions, size: int
) -> list[Any]:
    """Generate with the classes of transformers as documented, in batches in the order of the prompts."""
    texts = []
    for at in range(0, len(prompts), size):
        batch = prompts[at : at + size]
        pictures = [Image.fromarray(images[prompt.image]) for prompt in batch]
        inputs = prepare(model.prompter.processor, "llava", pictures, [prompt.text for prompt in batch])
        with torch.inference_mode():
            output = model.network.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False)
        texts += [model.read_text(ids).text for ids in output[:, inputs["input_ids"].shape[1] :].tolist()]
    return texts


def ours(
    model: Vlm, images: Sequence[Pixels], prompts: Sequence[Prompt], options: GenerateOptions, size: int
) -> list[Any]:
    """Generate with this package."""
    results = model.generate(images, prompts, options, capacity=size)
    return [result[0].text if isinstance(result, list) else result for result in results]


def draw_images(num_images: int) -> list[Pixels]:
    """Return images of noise."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(num_images)]


def vary_lengths(model: Vlm, images: Sequence[Pixels], prompt: str, *, longest: int) -> None:
    """Let texts end after different numbers of tokens, as captions do: random weights repeat themselves for ever.

    One token of some of the texts, each further on, becomes an end of all texts.
    """
    model.network.generation_config.eos_token_id = [2]
    inputs = model.prompter.inputs(images, [model.prompter.write(prompt, None)] * len(images))
    with torch.inference_mode():
        output = model.network.generate(**inputs, max_new_tokens=longest, do_sample=False)
    ends = {2}
    for number, ids in enumerate(output[:, inputs["input_ids"].shape[1] :].tolist()):
        if number % 5:
            continue
        wanted = longest // 5 + number * 7 % (longest - longest // 5)
        ends |= {next((token for token in ids[wanted:] if token not in ids[:wanted]), 2)}
    model.network.generation_config.eos_token_id = sorted(ends)
    model.ends = frozenset(ends)


def measure(
    model: Vlm, questions: Sequence[str], *, longest: int, num_images: int, size: int, num_runs: int
) -> dict[str, Any]:
    """Return the times of both in runs that alternate, and their ratio."""
    images = draw_images(num_images)
    vary_lengths(model, images, questions[0], longest=longest)
    prompts = [Prompt(image=at, text=text, name="") for at in range(num_images) for text in questions]
    options = GenerateOptions(max_new_tokens=longest)
    ways: dict[str, Callable[..., list[Any]]] = {"transformers": plain, "blip2cap": ours}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[Any]] = {}
    for run in range(num_runs + 1):  # the first is not counted
        for name, way in ways.items():
            started = time.process_time()
            texts[name] = way(model, images, prompts, options, size)
            if run:
                seconds[name].append(time.process_time() - started)
    results = model.generate(images, prompts, options, capacity=size)
    lengths = [result[0].num_tokens for result in results if isinstance(result, list)]
    ratios = [one / other for one, other in zip(seconds["transformers"], seconds["blip2cap"], strict=True)]
    return {
        "prompts_per_image": len(questions),
        "images": num_images,
        "batch": size,
        "tokens_per_text": {"mean": round(statistics.mean(lengths), 1), "most": max(lengths)},
        "equal_texts": texts["transformers"] == texts["blip2cap"],
        "cpu_seconds": {name: [round(each, 3) for each in times] for name, times in seconds.items()},
        "ratios": [round(each, 2) for each in ratios],
        "median_ratio": round(statistics.median(ratios), 2),
    }


def main() -> None:
    """Measure captions and questions, and print the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"num_images": arguments.images, "size": arguments.batch, "num_runs": arguments.runs}
    with tempfile.TemporaryDirectory() as name:
        make_llava(Path(name))
        options = ModelOptions(name=name, device="cpu", dtype="float32")
        model = load(find(options), options)
    result = {
        "what": "texts of a LLaVA of 6 layers of width 256, 256 tokens for an image, random weights, float32",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "captions": measure(model, CAPTION, longest=30, **settings),
        "detailed_captions": measure(model, DETAILED, longest=200, **settings),
        "questions": measure(model, QUESTIONS, longest=30, **settings),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
