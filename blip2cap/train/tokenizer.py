"""The tiny model's tokenizer: a byte-level BPE, as OPT has, trained on scene captions and questions."""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from blip2cap.models.registry import FAMILIES
from blip2cap.tiny.scenes import TRAINING_SEEDS, draw

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<image>")
"""Ids 0 to 4, the first four as in OPT; `</s>` is both the first and the last token of a text."""
VOCABULARY_SIZE = 640


def train_tokenizer(num_scenes: int = 3_000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the texts of the first training scenes; the result is always the same."""
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(num_scenes), trainer)
    begin = ("</s>", tokenizer.token_to_id("</s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )


def _texts(num_scenes: int) -> Iterator[str]:
    for seed in TRAINING_SEEDS[:num_scenes]:
        scene = draw(seed, (16, 16))
        yield f" {scene.caption}"
        yield f"a photo of {scene.caption}"
        for question in scene.questions:
            for text in (question.text, question.text.capitalize()):
                yield FAMILIES["opt"].vqa_template.replace("{question}", text) + f" {question.answer}"
