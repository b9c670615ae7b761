"""The losses of BLIP-2's first stage, as model/stage1.py has them, where more is known of the scenes.

Every text has a false one with one word changed, the hardest negative; texts that are true of another scene too are
never negatives of it.

B = images in a batch, one text each; Q = query tokens, T = text tokens, P = patches, D = hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional
from transformers import Blip2ForImageTextRetrieval

from blip2cap.train.model.stage1 import Stage1, generation_mask


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


def losses(model: Blip2ForImageTextRetrieval, extra: Stage1, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the three losses; hard negatives are drawn with torch's generator on the CPU."""
    image_BPD = batch.image_BPD.float()

    # 1. queries and text generation in one pass: the queries do not see the text, so they are those of ITC too
    decoder_ids_BT = batch.ids_BT.clone()
    decoder_ids_BT[:, 0] = extra.begin_id
    queries_BQD, decoded_BTD = _read(
        model, image_BPD, decoder_ids_BT, generation_mask(model.config.num_query_tokens, batch.mask_BT)
    )
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
    hard_texts = torch.multinomial(weights_BB[first].cpu(), 1).squeeze(1).to(targets_B.device)
    hard_images = torch.multinomial(reverse_BB[last].cpu(), 1).squeeze(1).to(targets_B.device)
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
