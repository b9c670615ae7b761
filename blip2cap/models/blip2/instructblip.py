"""A loaded InstructBLIP: its Q-Former reads the instruction too, so it runs once per prompt, not once per image.

Shapes: B = images, H, W = pixels, C = channels, P = patches, Q = query tokens, D = hidden size, N = text rows,
T = tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2.model import Blip2, token_ids
from blip2cap.models.blip2.stream import TextRow, Tokens
from blip2cap.models.blip2.transfer import to_device


class InstructBlip(Blip2):
    """A network with its two tokenizers, on one device."""

    qformer_tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        network: Any,
        tokenizer: PreTrainedTokenizerBase,
        qformer_tokenizer: PreTrainedTokenizerBase,
        *,
        checkpoint: Checkpoint,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__(network, tokenizer, checkpoint=checkpoint, mean=mean, std=std)
        self.qformer_tokenizer = qformer_tokenizer

    def image_features(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the patches of each image, [B, P, D]."""
        patches_BPD: torch.Tensor = self.network.vision_model(pixels_BCHW).last_hidden_state
        return patches_BPD

    def tokenise(self, text: str) -> Tokens:
        """Tokenise a prompt for the language model and for the Q-Former."""
        return Tokens(ids=token_ids(self.tokenizer, text), qformer_ids=token_ids(self.qformer_tokenizer, text))

    def image_embeddings(self, rows: Sequence[TextRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the language model sees of the image of each row, [N, Q, D], and the numbers of the rows, [N]."""
        by_length = itertools.groupby(rows, key=lambda row: len(row.tokens.qformer_ids))
        queries_NQD = torch.cat([self._run_qformer(list(group)) for _, group in by_length])
        return queries_NQD, torch.arange(len(rows), device=self.device)

    def _run_qformer(self, rows: Sequence[TextRow]) -> torch.Tensor:
        """Run the Q-Former and the projection on rows whose instructions have the same length."""
        patches_NPD = torch.stack([row.image for row in rows])
        queries_NQD = self.network.query_tokens.expand(len(rows), -1, -1)
        ids_NT = to_device([row.tokens.qformer_ids for row in rows], self.device)
        with self.watch.measure("qformer"):
            # No masks: transformers reads them, and so waits for the device.
            hidden_NTD = self.network.qformer(
                input_ids=ids_NT, query_embeds=queries_NQD, encoder_hidden_states=patches_NPD
            ).last_hidden_state
            projection = self.network.language_projection
            projected: torch.Tensor = projection(hidden_NTD[:, : self.num_query_tokens].to(projection.weight.dtype))
            return projected
