"""The losses of BLIP-2's first stage (https://arxiv.org/abs/2301.12597, section 3.2) on `Blip2ForImageTextRetrieval`.

ITC: contrast of images and texts. ITM: match or not, with hard negatives. LM: text generated from the queries. All
details as in LAVIS, but that no pair of the same image is a negative.

B = pairs of an image and a text in this process, N = in all processes, P = patches, Q = query tokens, T = tokens,
D = hidden size, E = size of the common space, V = vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from blip2cap.train.model.gather import draw, first_row, gather, gather_padded, mean_over_processes

_SMOOTHING = 0.1
"""Label smoothing of contrast and of generated text."""
_TEMPERATURE, _LOWEST, _HIGHEST = 0.07, 0.001, 0.5
"""Temperature of the contrast at the start, and the limits of what it may become, as in ALBEF."""
_LEAST = 1e-4
"""Added to the weights of negatives: every pair may be drawn."""
_HIDDEN = torch.finfo(torch.float16).min
"""Added to the scores of positions that are not seen; every dtype of autocast can hold it."""


class TextHead(nn.Module):
    """Predicts the next token from the Q-Former's output; its last matrix is that of the word embeddings, as in BERT.

    It is not saved with the model, which does not generate.
    """

    def __init__(self, width: int, num_words: int) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.bias = nn.Parameter(torch.zeros(num_words))

    def forward(self, hidden_ND: torch.Tensor, words_VD: torch.Tensor) -> torch.Tensor:
        """Return logits [N, V]."""
        return functional.linear(self.transform(hidden_ND), words_VD, self.bias)


class Stage1(nn.Module):
    """The three losses, and their parameters that are not part of the model."""

    def __init__(self, config: Any, *, begin_id: int, seed: int) -> None:
        """`config` is that of the network; `begin_id` begins a text that is generated, in place of its first token."""
        super().__init__()
        self.begin_id, self.num_queries = begin_id, int(config.num_query_tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text_head = TextHead(config.qformer_config.hidden_size, config.qformer_config.vocab_size)
        self.log_temperature = nn.Parameter(torch.tensor(_TEMPERATURE).log())

    def forward(
        self,
        model: Any,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        image_ids: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return `loss`, the sum of `loss_itc`, `loss_itm` and `loss_lm`.

        Texts are `[CLS] words [SEP]`, padded on the right; pairs with equal `image_ids`, [B], show the same image.
        Every process needs the same number of pairs. Negatives are drawn with torch's generator on the CPU.
        """
        patches_BPD = model.vision_model(pixel_values).last_hidden_state
        queries_BQD, lm = self._generate(model, patches_BPD, input_ids, attention_mask)
        same_BN = image_ids[:, None] == gather(image_ids)
        images_BN, texts_BN = self._similarities(model, queries_BQD, input_ids, attention_mask)
        itc = (_contrast(images_BN, same_BN) + _contrast(texts_BN, same_BN)) / 2
        itm = self._match(model, patches_BPD, input_ids, attention_mask, images_BN, texts_BN, same_BN)
        return {"loss": itc + itm + lm, "loss_itc": itc, "loss_itm": itm, "loss_lm": lm}

    def _generate(
        self, model: Any, patches_BPD: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the queries, which do not see the text, and the loss of the text that is generated from them."""
        given_BT = ids_BT.clone()
        given_BT[:, 0] = self.begin_id
        queries_BQD, text_BTD = self._read_pairs(
            model, patches_BPD, given_BT, generation_mask(self.num_queries, mask_BT)
        )
        learned_BT = mask_BT[:, 1:].bool()
        logits_NV = self.text_head(text_BTD[:, :-1][learned_BT], model.embeddings.word_embeddings.weight)
        total = functional.cross_entropy(
            logits_NV.float(), ids_BT[:, 1:][learned_BT], reduction="sum", label_smoothing=_SMOOTHING
        )
        return queries_BQD, total / mean_over_processes(learned_BT.sum())

    def _similarities(
        self, model: Any, queries_BQD: torch.Tensor, ids_BT: torch.Tensor, mask_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the similarities of images to all texts, and of texts to all images, [B, N] each."""
        text_BTD = model.qformer(
            query_embeds=model.embeddings(input_ids=ids_BT), query_length=0, attention_mask=mask_BT
        ).last_hidden_state
        image_BQE = functional.normalize(model.vision_projection(queries_BQD).float(), dim=-1)
        text_BE = functional.normalize(model.text_projection(text_BTD[:, 0]).float(), dim=-1)
        # An image is as similar to a text as the most similar of its queries.
        images_BN = torch.einsum("bqe,ne->bnq", image_BQE, gather(text_BE)).amax(dim=-1)
        texts_BN = torch.einsum("be,nqe->bnq", text_BE, gather(image_BQE)).amax(dim=-1)
        temperature = self.log_temperature.exp().clamp(_LOWEST, _HIGHEST)
        return images_BN / temperature, texts_BN / temperature

    def _match(
        self,
        model: Any,
        patches_BPD: torch.Tensor,
        ids_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        images_BN: torch.Tensor,
        texts_BN: torch.Tensor,
        same_BN: torch.Tensor,
    ) -> torch.Tensor:
        """Return the loss of true pairs, of texts with similar images, and of images with similar texts."""
        num_rows, num_all = same_BN.shape
        rows = slice(first_row(num_rows), first_row(num_rows) + num_rows)
        random_2N = draw(2, num_all, device=ids_BT.device)
        image_of_B = draw_negatives(texts_BN, same_BN, random_2N[0, rows])
        text_of_B = draw_negatives(images_BN, same_BN, random_2N[1, rows])
        all_ids_NT, all_mask_NT = gather_padded(ids_BT), gather_padded(mask_BT)
        own_ids_BT, own_mask_BT = all_ids_NT[rows], all_mask_NT[rows]
        ids = torch.cat([own_ids_BT, own_ids_BT, all_ids_NT[text_of_B]])
        mask = torch.cat([own_mask_BT, own_mask_BT, all_mask_NT[text_of_B]])
        images = torch.cat([patches_BPD, gather(patches_BPD)[image_of_B], patches_BPD])
        seen = functional.pad(mask, (self.num_queries, 0), value=1)
        queries_QD, _ = self._read_pairs(model, images, ids, seen)
        logits_2 = model.itm_head(queries_QD).float().mean(dim=1)
        false_B = torch.where(same_BN.all(dim=1), -100, 0)  # no negative for an image that is the only one
        labels = torch.cat([torch.ones_like(false_B), false_B, false_B])
        total = functional.cross_entropy(logits_2, labels, reduction="sum")
        return total / mean_over_processes((labels != -100).sum())

    def _read_pairs(
        self, model: Any, images_BPD: torch.Tensor, ids_BT: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run queries and texts together; return the outputs of the Q-Former for the queries and for the texts."""
        queries_BQD = model.query_tokens.expand(len(ids_BT), -1, -1)
        hidden = model.qformer(
            query_embeds=model.embeddings(input_ids=ids_BT, query_embeds=queries_BQD),
            query_length=self.num_queries,
            attention_mask=mask,
            encoder_hidden_states=images_BPD,
        ).last_hidden_state
        return hidden[:, : self.num_queries], hidden[:, self.num_queries :]


def generation_mask(num_queries: int, mask_BT: torch.Tensor) -> torch.Tensor:
    """Return the additive mask [B, 1, Q + T, Q + T]: queries see queries; a token sees queries and earlier tokens."""
    length = num_queries + mask_BT.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=mask_BT.device).tril()
    seen[:num_queries, :num_queries] = True
    seen_B = seen[None] & functional.pad(mask_BT.bool(), (num_queries, 0), value=True)[:, None]
    return torch.zeros(seen_B.shape, device=mask_BT.device).masked_fill(~seen_B, _HIDDEN)[:, None]


def draw_negatives(similarities_BN: torch.Tensor, same_BN: torch.Tensor, random_B: torch.Tensor) -> torch.Tensor:
    """Draw another pair for each row, with probabilities by similarity; `random_B` are numbers from 0 to below 1.

    Pairs that are the `same` are not drawn, unless all are.
    """
    # In float64 and by inversion instead of torch.multinomial, so that any number of processes draws the same.
    weights_BN = (similarities_BN.detach().double().softmax(dim=1) + _LEAST).masked_fill(same_BN, 0)
    sums_BN = weights_BN.cumsum(dim=1)
    places_B1 = torch.searchsorted(sums_BN, random_B[:, None] * sums_BN[:, -1:], right=True)
    return places_B1.squeeze(1).clamp(max=same_BN.shape[1] - 1)


def _contrast(similarities_BN: torch.Tensor, same_BN: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy to a target that is shared by all pairs of the same image, smoothed."""
    same_BN = same_BN.float()
    targets_BN = (1 - _SMOOTHING) * same_BN / same_BN.sum(dim=1, keepdim=True) + _SMOOTHING / same_BN.shape[1]
    return functional.cross_entropy(similarities_BN, targets_BN)
