"""An example as the model sees it, for people: `[32 image tokens] </s>Question: ... Answer: | yes</s>`."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from blip2cap.escapes import clean
from blip2cap.train.data.collate import IGNORED, TextBase


def render(base: TextBase, batch: Mapping[str, torch.Tensor], number: int) -> str:
    """Return one row of a batch of a collator as a line: what is given, `|`, what is to be learnt.

    Nothing is hidden but padding: special tokens have their names, and a text that was truncated lacks its end.
    """
    ids = batch["input_ids"][number][batch["attention_mask"][number].bool()].tolist()
    if "image_ids" in batch:
        return clean(f"[image {int(batch['image_ids'][number])}] | {base.tokenizer.decode(ids)}")
    labels = batch["labels"][number]
    target = labels[labels != IGNORED].tolist()
    num_images = ids.count(base.image_token_id)
    # T5 writes its target apart; other models have it at the end of what they read.
    prompt = ids[num_images:] if base.checkpoint.text_type == "t5" else ids[num_images : len(ids) - len(target)]
    line = f"[{num_images} image tokens] {base.tokenizer.decode(prompt)} | {base.tokenizer.decode(target).lstrip(' ')}"
    if base.qformer_tokenizer is not None:
        instruction = batch["qformer_input_ids"][number][batch["qformer_attention_mask"][number].bool()].tolist()
        line += f" (Q-Former: {base.qformer_tokenizer.decode(instruction)})"
    return clean(line)
