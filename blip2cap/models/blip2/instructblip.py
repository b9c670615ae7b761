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

    def query_features(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the last hidden state of the Q-Former for each image, [B, Q, D]; it reads an empty instruction."""
        patches_BPD = self.image_features(pixels_BCHW)
        ids_BT = to_device([token_ids(self.qformer_tokenizer, "")] * len(patches_BPD), self.device)
        return self._run_qformer(patches_BPD, ids_BT)

    def tokenise(self, text: str) -> Tokens:
        """Tokenise a prompt for the language model and for the Q-Former."""
        return Tokens(ids=token_ids(self.tokenizer, text), qformer_ids=token_ids(self.qformer_tokenizer, text))

    def image_embeddings(self, rows: Sequence[TextRow]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the language model sees of the image of each row, [N, Q, D], and the numbers of the rows, [N]."""
        by_length = itertools.groupby(rows, key=lambda row: len(row.tokens.qformer_ids))
        queries_NQD = torch.cat([self._project(list(group)) for _, group in by_length])
        return queries_NQD, torch.arange(len(rows), device=self.device)

    def _project(self, rows: Sequence[TextRow]) -> torch.Tensor:
        """Run the Q-Former and the projection on rows whose instructions have the same length."""
        patches_NPD = torch.stack([row.image for row in rows])
        ids_NT = to_device([row.tokens.qformer_ids for row in rows], self.device)
        with self.watch.measure("qformer"):
            projection = self.network.language_projection
            hidden_NQD = self._run_qformer(patches_NPD, ids_NT)
            projected: torch.Tensor = projection(hidden_NQD.to(projection.weight.dtype))
            return projected

    def _run_qformer(self, patches_NPD: torch.Tensor, ids_NT: torch.Tensor) -> torch.Tensor:
        """Run the Q-Former on images and instructions of the same length; return its last hidden state, [N, Q, D]."""
        queries_NQD = self.network.query_tokens.expand(len(ids_NT), -1, -1)
        # No masks: transformers reads them, and so waits for the device.
        hidden_NTD: torch.Tensor = self.network.qformer(
            input_ids=ids_NT, query_embeds=queries_NQD, encoder_hidden_states=patches_NPD
        ).last_hidden_state
        return hidden_NTD[:, : self.num_query_tokens]
