"""The known configurations -> the memory that each model takes, by dtype and quantisation, computed and not measured.

    PYTHONPATH=. python benchmarks/model_memory.py --out benchmarks/results/model_memory.json

Covered: all weights, exactly, counted in the network that transformers builds from a configuration, without memory for
it; keys and values; the widest activations of the vision encoder; features that wait for the decoder; logits. Not
covered: the CUDA context, the libraries' workspaces and the fragmentation of the allocator.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from torch import nn

from blip2cap.bench.work import count
from blip2cap.generate_options import CAPTION_NEW_TOKENS
from blip2cap.models.blip2.quantize import NEVER
from blip2cap.models.blip2.random_weights import build_empty
from blip2cap.models.checkpoint import KNOWN, Checkpoint, find
from blip2cap.models.registry import FAMILIES
from blip2cap.options import DEFAULT_MODEL, ModelOptions

SIZES = ((8, 16), (128, 512))
"""Images encoded and texts decoded at once, with which a run on a GPU begins, and which it reaches at most."""
LIBRARY_TEXTS = 64
"""Texts at once where transformers' own `generate` decodes them: Llama."""
NF4_BITS = 4 + 32 / 64
"""A weight, and its share of the float32 scale of a block of 64."""


def captioners() -> list[Checkpoint]:
    """Return the known models that write texts."""
    found = [find(ModelOptions(name=f"Salesforce/{path.stem}", random_weights=True)) for path in KNOWN.glob("*.json")]
    return [checkpoint for checkpoint in found if "caption" in FAMILIES[checkpoint.family].tasks]


def memory_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the memory of one model, in bytes."""
    network = build_empty(checkpoint)
    parameters = num_parameters(network, checkpoint)
    quantised = [
        module.weight
        for path, module in network.named_modules()
        if type(module) is nn.Linear and not set(NEVER).intersection(path.split("."))
    ]
    num_quantised = sum(weight.numel() for weight in quantised)
    scale_bytes = 4 * sum(len(weight) for weight in quantised)  # float32, one for each output
    rest_bytes = 2 * (parameters - num_quantised)
    library = checkpoint.text_type == "llama"
    return {
        "parameters": parameters,
        "quantised_parameters": num_quantised,
        "weights": {
            "float32": 4 * parameters,
            "bfloat16": 2 * parameters,
            "int8": num_quantised + scale_bytes + rest_bytes,
            "nf4": round(num_quantised * NF4_BITS / 8) + rest_bytes,
        },
        "working": {
            f"{images}_images": working_bytes(checkpoint, images, LIBRARY_TEXTS if library else texts)
            for images, texts in SIZES
        },
    }


def num_parameters(network: Any, checkpoint: Checkpoint) -> int:
    """Count the parameters that a checkpoint holds: Flan-T5 has an output layer of its own, which its class ties."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    head = network.get_output_embeddings().weight
    tied = (checkpoint.config.get("text_config") or {}).get("tie_word_embeddings", True)
    return parameters + (head.numel() if not tied and head is network.get_input_embeddings().weight else 0)


def working_bytes(checkpoint: Checkpoint, images: int, texts: int) -> int:
    """Return the bytes in bfloat16 beside the weights: captions of the default length, greedy, without a prompt."""
    config = checkpoint.config
    vision, text = config["vision_config"], config["text_config"]
    num_tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    width = text.get("hidden_size") or text["d_model"]
    # The widest moment of a layer: its input, the same normalised, and the MLP before and after the activation.
    encoder = images * num_tokens * 2 * (vision["hidden_size"] + vision["intermediate_size"]) * 2
    queries = num_tokens * vision["hidden_size"] if checkpoint.family == "instructblip" else 32 * width
    features = (images + texts) * queries * 2
    cache = texts * count(config, prompts=(1,), new_tokens=CAPTION_NEW_TOKENS).kv_bytes
    logits = texts * text["vocab_size"] * 4
    return int(encoder + features + cache + logits)


def table(models: dict[str, Any]) -> list[str]:
    """Write the table of docs/models.md, in GB of 1,000,000,000 bytes."""
    rows = [
        "| `--model` | parameters | float32 | bfloat16 | int8, fp8 | nf4 | a run adds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, facts in models.items():
        weights = [f"{num_bytes / 1e9:.1f}" for num_bytes in facts["weights"].values()]
        smallest, largest = (num_bytes / 1e9 for num_bytes in facts["working"].values())
        cells = (f"`{name}`", f"{facts['parameters'] / 1e9:.2f} billion", *weights, f"{smallest:.1f} to {largest:.0f}")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def short_table(models: dict[str, Any]) -> list[str]:
    """Write the table of README.md."""
    rows = ["| `--model` | download | bfloat16 | `--quantize int8` | `--quantize nf4` |", "|---|---|---|---|---|"]
    for name, facts in models.items():
        weights = " | ".join(f"{num_bytes / 1e9:.1f}" for num_bytes in facts["weights"].values())
        rows.append(f"| `{name}`{' (default)' if name == DEFAULT_MODEL else ''} | {weights} |")
    return rows


def main() -> None:
    """Compute the memory of every known model, and print the tables of the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    out = parser.parse_args().out
    facts = [(checkpoint.name, memory_of(checkpoint)) for checkpoint in captioners()]
    models = dict(sorted(facts, key=lambda item: int(item[1]["parameters"])))
    result = {"note": "computed from configurations, not measured; bytes", "models": models}
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("\n".join([*short_table(models), "", *table(models)]))


if __name__ == "__main__":
    main()
