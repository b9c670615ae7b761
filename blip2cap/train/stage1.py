"""The losses of BLIP-2's first stage (https://arxiv.org/abs/2301.12597, section 3.2) on `Blip2ForImageTextRetrieval`.

ITC: contrast of images and texts. ITM: match or not, with hard negatives. LM: text generated from the queries.
B = images in a batch, one text each; Q = query tokens, T = text tokens, P = patches, D = hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import Blip2ForImageTextRetrieval

from blip2cap.train.tiny_itm import TextHead


class Batch(NamedTuple):
    """Images with a true text each."""

    image_BPD: torch.Tensor
    """Output of the frozen vision encoder; float16"""
    ids_BT: torch.Tensor
    """`[CLS]` text `[SEP]`, padded on the right."""
    mask_BT: torch.Tensor
    changed_ids_BT: torch.Tensor
    """The same texts with one word changed, so that they are false."""
    changed_mask_BT: torch.Tensor
    true_BB: torch.Tensor
    """bool; [i, j]: text j is true of image i, as on the diagonal."""


class Stage1(nn.Module):
    """Parameters of the losses that are not saved with the model."""

    def __init__(self, width: int, vocabulary_size: int) -> None:
        super().__init__()
        self.text_head = TextHead(width, vocabulary_size)
        self.log_temperature = nn.Parameter(torch.tensor(0.07).log())


def losses(
    model: Blip2ForImageTextRetrieval, extra: Stage1, batch: Batch, *, dec_id: int, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Return the three losses; `generator` draws the hard negatives in the batch, `dec_id` begins generated texts."""
    image_BPD = batch.image_BPD.float()

    # 1. queries and text generation in one pass: the queries do not see the text, so they are those of ITC too
    decoder_ids_BT = batch.ids_BT.clone()
    decoder_ids_BT[:, 0] = dec_id
    queries_BQD, decoded_BTD = _read(model, image_BPD, decoder_ids_BT, generation_mask(model, batch.mask_BT))
    predicted = batch.mask_BT[:, 1:].bool()
    logits_NV = extra.text_head(decoded_BTD[:, :-1][predicted], model.embeddings.word_embeddings.weight)
    lm = functional.cross_entropy(logits_NV, batch.ids_BT[:, 1:][predicted])

    # 2. contrast: every image against every text; other texts that are true of an image are neither right nor wrong
    text_BTD = model.qformer(
        query_embeds=model.embeddings(input_ids=batch.ids_BT), query_length=0, attention_mask=batch.mask_BT
    ).last_hidden_state
    image_features = functional.normalize(model.vision_projection(queries_BQD), dim=-1)
    text_features = functional.normalize(model.text_projection(text_BTD[:, 0]), dim=-1)
    cosine_BB = torch.einsum("iqd,jd->ijq", image_features, text_features).amax(dim=-1)
    temperature = extra.log_temperature.exp().clamp(0.01, 0.5)
    own = torch.eye(len(cosine_BB), dtype=torch.bool, device=cosine_BB.device)
    logits_BB = (cosine_BB / temperature).masked_fill(batch.true_BB & ~own, -torch.inf)
    targets_B = torch.arange(len(logits_BB), device=logits_BB.device)
    itc = (functional.cross_entropy(logits_BB, targets_B) + functional.cross_entropy(logits_BB.T, targets_B)) / 2

    # 3. match: true pairs, changed texts, and for a quarter of the batch each a similar false text or image
    weights_BB = logits_BB.detach().softmax(dim=1).masked_fill(batch.true_BB, 0) + 1e-6 * ~batch.true_BB
    reverse_BB = logits_BB.T.detach().softmax(dim=1).masked_fill(batch.true_BB.T, 0) + 1e-6 * ~batch.true_BB.T
    first, last = slice(0, len(own) // 4), slice(len(own) - len(own) // 4, None)
    hard_texts = torch.multinomial(weights_BB[first].cpu(), 1, generator=generator).squeeze(1).to(targets_B.device)
    hard_images = torch.multinomial(reverse_BB[last].cpu(), 1, generator=generator).squeeze(1).to(targets_B.device)
    images = torch.cat([targets_B, targets_B, targets_B[first], hard_images])
    texts = torch.cat([hard_texts, targets_B[last]])
    ids = torch.cat([batch.ids_BT, batch.changed_ids_BT, batch.ids_BT[texts]])
    mask = torch.cat([batch.mask_BT, batch.changed_mask_BT, batch.mask_BT[texts]])
    queries = torch.ones(len(ids), model.config.num_query_tokens, dtype=mask.dtype, device=mask.device)
    matched, _ = _read(model, image_BPD[images], ids, torch.cat([queries, mask], dim=1))
    logits = model.itm_head(matched).mean(dim=1)
    labels = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
    labels[: len(own)] = 1
    itm = functional.cross_entropy(logits, labels)
    return {"itc": itc, "itm": itm, "lm": lm}


def generation_mask(model: Blip2ForImageTextRetrieval, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return the additive mask [B, 1, Q + T, Q + T]: queries see queries; a token sees queries and earlier tokens."""
    num_queries, length = model.config.num_query_tokens, mask_BT.shape[1]
    seen = torch.ones(num_queries + length, num_queries + length, dtype=torch.bool, device=mask_BT.device).tril()
    seen[:num_queries, :num_queries] = True
    ones = torch.ones(len(mask_BT), num_queries, dtype=torch.bool, device=mask_BT.device)
    seen_B = seen[None] & torch.cat([ones, mask_BT.bool()], dim=1)[:, None]
    mask_B = torch.zeros(seen_B.shape, device=mask_BT.device).masked_fill(~seen_B, torch.finfo(torch.float32).min)
    return mask_B[:, None]


def _read(
    model: Blip2ForImageTextRetrieval, image_NPD: torch.Tensor, ids_NT: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the Q-Former on queries and text together; return its outputs for the queries and for the text."""
    queries = model.query_tokens.expand(len(ids_NT), -1, -1)
    hidden = model.qformer(
        query_embeds=model.embeddings(input_ids=ids_NT, query_embeds=queries),
        query_length=queries.shape[1],
        attention_mask=mask,
        encoder_hidden_states=image_NPD,
    ).last_hidden_state
    return hidden[:, : queries.shape[1]], hidden[:, queries.shape[1] :]
