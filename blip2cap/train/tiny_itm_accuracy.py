"""Accuracy of a matching model on unseen scenes: recall among scenes with distinct captions, and matches.

Covered: transformers' own class, through its parts, so that the figures are those of the weights.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import BertTokenizer, Blip2ForImageTextRetrieval

from blip2cap.decode.image import Pixels
from blip2cap.tiny.scenes import VALIDATION_SEEDS, Scene, draw
from blip2cap.train.drawn_files import drawn_files
from blip2cap.train.pixels import normalise
from blip2cap.train.statements import CHANGES, changed, full, shorter

SET_SIZE = 100
"""Scenes with distinct captions, among which one is searched."""
RERANKED = 10
"""Number of best results by ITC that ITM ranks again, by the ITM logit + ITC, as LAVIS does."""
_BATCH = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchAccuracy:
    """Recall and accuracy, as shares from 0 to 1."""

    seeds: tuple[int, int]
    """First and last seed of the scenes."""
    num_sets: int
    set_size: int
    itc_text_recall: float
    """Share of images whose own caption has the highest ITC of the set (recall@1, image to text)."""
    itc_image_recall: float
    """Share of captions whose own image has the highest ITC of the set (recall@1, text to image)."""
    lowest_itc_recall: float
    """The lowest of both in any set."""
    reranked: int
    reranked_text_recall: float
    reranked_image_recall: float
    lowest_reranked_recall: float
    num_true: int
    true_accuracy: float
    """Share of true captions with an ITM probability above 0.5."""
    num_changed: int
    changed_accuracy: float
    """Share of captions with one word changed that have an ITM probability below 0.5."""
    balanced_accuracy: float
    """Mean of the two."""
    by_change: dict[str, float]
    """Accuracy of changed captions, by type of the changed word."""
    shorter_true_accuracy: float
    """The same for texts that leave out some of the caption: "a boat on the sea"."""
    shorter_changed_accuracy: float

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


class Scores:
    """ITC and ITM of a model, for images that it encodes once. N = pairs."""

    def __init__(self, model: Blip2ForImageTextRetrieval, tokenizer: BertTokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.device = model.query_tokens.device

    @torch.inference_mode()
    def images(self, pixels: Sequence[Pixels]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return vision features [B, P, D] and normalised query vectors [B, Q, D] of uint8 pixels [H, W, 3]."""
        pixels_BCHW = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(self.device)
        image_BPD = self.model.vision_model(normalise(pixels_BCHW)).last_hidden_state
        queries = self.model.query_tokens.expand(len(image_BPD), -1, -1)
        queries_BQD = self.model.qformer(query_embeds=queries, encoder_hidden_states=image_BPD).last_hidden_state
        return image_BPD, functional.normalize(self.model.vision_projection(queries_BQD), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return normalised vectors [N, D]."""
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.device)
        embeds = self.model.embeddings(input_ids=tokens.input_ids)
        hidden = self.model.qformer(query_embeds=embeds, query_length=0, attention_mask=tokens.attention_mask)
        return functional.normalize(self.model.text_projection(hidden.last_hidden_state[:, 0]), dim=-1)

    @torch.inference_mode()
    def cosines(self, queries_BQD: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """Return ITC [B, N]: the highest cosine of a text with any query vector of an image."""
        return torch.einsum("iqd,jd->ijq", queries_BQD, self.texts(texts)).amax(dim=-1)

    @torch.inference_mode()
    def itm(self, image_NPD: torch.Tensor, texts: Sequence[str]) -> torch.Tensor:
        """Return the difference of the two ITM logits of N pairs: above 0 is a match."""
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(self.device)
        queries = self.model.query_tokens.expand(len(texts), -1, -1)
        ones = torch.ones(queries.shape[:2], dtype=torch.long, device=self.device)
        hidden = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=tokens.input_ids, query_embeds=queries),
            query_length=queries.shape[1],
            attention_mask=torch.cat([ones, tokens.attention_mask], dim=1),
            encoder_hidden_states=image_NPD,
        ).last_hidden_state
        logits: torch.Tensor = self.model.itm_head(hidden[:, : queries.shape[1]]).mean(dim=1)
        return logits[:, 1] - logits[:, 0]


def measure_matches(scores: Scores, *, num_sets: int, first_seed: int = VALIDATION_SEEDS.start) -> MatchAccuracy:
    """Measure on `num_sets` sets of 100 unseen scenes, read from JPEG files."""
    size = int(scores.model.config.vision_config.image_size)
    seeds = iter(range(first_seed, VALIDATION_SEEDS.stop))
    recalls, reranked = [], []
    results: dict[str, list[bool]] = {name: [] for name in (*CHANGES, "true", "shorter", "shorter changed")}
    for _ in range(num_sets):
        chosen = distinct_captions(seeds, SET_SIZE)
        files = list(drawn_files(chosen, size))
        encoded = [scores.images([pixels for _, _, pixels in files[start : start + _BATCH]]) for start in (0, _BATCH)]
        image_BPD, queries_BQD = (torch.cat(parts) for parts in zip(*encoded, strict=True))
        captions = [scene.caption for _, scene, _ in files]
        itc_BB = scores.cosines(queries_BQD, captions)
        recalls += [_recall(itc_BB), _recall(itc_BB.T)]
        best_BB = reranked_scores(scores, itc_BB, image_BPD, captions)
        best_reverse_BB = reranked_scores(scores, itc_BB.T, image_BPD, captions, rows_are_texts=True)
        reranked += [_recall(best_BB), _recall(best_reverse_BB)]
        labels, indices, texts = zip(*_statements(files), strict=True)
        for start in range(0, len(texts), _BATCH):
            part = slice(start, start + _BATCH)
            logits = scores.itm(image_BPD[list(indices[part])], texts[part])
            for label, logit in zip(labels[part], logits.tolist(), strict=True):
                results[label].append((logit > 0) == (label in ("true", "shorter")))
    wrong = [result for change in CHANGES for result in results[change]]
    return MatchAccuracy(
        seeds=(first_seed, chosen[-1]),
        num_sets=num_sets,
        set_size=SET_SIZE,
        itc_text_recall=_share(recalls[0::2]),
        itc_image_recall=_share(recalls[1::2]),
        lowest_itc_recall=round(min(recalls), 4),
        reranked=RERANKED,
        reranked_text_recall=_share(reranked[0::2]),
        reranked_image_recall=_share(reranked[1::2]),
        lowest_reranked_recall=round(min(reranked), 4),
        num_true=len(results["true"]),
        true_accuracy=_share(results["true"]),
        num_changed=len(wrong),
        changed_accuracy=_share(wrong),
        balanced_accuracy=round((_share(results["true"]) + _share(wrong)) / 2, 4),
        by_change={change: _share(results[change]) for change in CHANGES},
        shorter_true_accuracy=_share(results["shorter"]),
        shorter_changed_accuracy=_share(results["shorter changed"]),
    )


def distinct_captions(seeds: Iterator[int], num_scenes: int) -> list[int]:
    """Take the next `num_scenes` seeds whose scenes have captions of their own."""
    captions: set[str] = set()
    chosen = []
    for seed in seeds:
        caption = draw(seed, (16, 16)).caption
        if caption not in captions:
            captions.add(caption)
            chosen.append(seed)
        if len(chosen) == num_scenes:
            break
    return chosen


def reranked_scores(
    scores: Scores, itc_BB: torch.Tensor, image_BPD: torch.Tensor, texts: Sequence[str], *, rows_are_texts: bool = False
) -> torch.Tensor:
    """Return scores [B, B] in which the best results of each row have the ITM logit + ITC, and the others none.

    Rows of `itc_BB` are images and columns texts, or the reverse.
    """
    reranked_BB = torch.full_like(itc_BB, -torch.inf)
    for row, best in enumerate(itc_BB.topk(min(RERANKED, itc_BB.shape[1]), dim=1).indices):
        rows = torch.full_like(best, row)
        images, chosen = (best, rows) if rows_are_texts else (rows, best)
        logits = scores.itm(image_BPD[images], [texts[text] for text in chosen.tolist()])
        reranked_BB[row, best] = logits + itc_BB[row, best]
    return reranked_BB


def _statements(files: Sequence[tuple[int, Scene, Pixels]]) -> Iterator[tuple[str, int, str]]:
    """Yield (label, index of the image, text): the caption, one changed caption of each type, and shorter texts."""
    for index, (seed, scene, _) in enumerate(files):
        rng = random.Random(f"statements {seed}")
        yield "true", index, scene.caption
        for change in CHANGES:
            wrong = changed(rng, full(scene), scene, (change,))
            if wrong is not None:
                yield change, index, wrong[0].text
        short = shorter(rng, scene)
        yield "shorter", index, short.text
        wrong = changed(rng, short, scene)
        if wrong is not None:
            yield "shorter changed", index, wrong[0].text


def _recall(scores_BB: torch.Tensor) -> float:
    """Return the share of rows whose highest score is on the diagonal."""
    return float((scores_BB.argmax(dim=1) == torch.arange(len(scores_BB), device=scores_BB.device)).float().mean())


def _share(values: Sequence[float]) -> float:
    return round(sum(values) / max(1, len(values)), 4)
