"""A small thing to train, in the form of the real ones: a network with dropout, data that shuffles, batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

IGNORED = -100


class FakeTrainee(nn.Module):
    """Predicts tokens from a vector through a frozen layer, dropout and a layer that trains."""

    def __init__(self, num_words: int = 11, width: int = 8, dropout: float = 0.3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.frozen = nn.Linear(4, width)
        self.head = nn.Linear(width, num_words)
        self.dropout = nn.Dropout(dropout)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
        self.frozen.requires_grad_(False)

    def forward(self, **batch: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = torch.tanh(self.frozen(batch["pixel_values"]))
        scores = self.head(self.dropout(hidden))[:, None].expand(-1, batch["labels"].shape[1], -1)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED)
        return {"loss": loss, "loss_lm": loss}

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: each for name, each in self.named_parameters() if each.requires_grad}


class FakeData(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Vectors with 1 to 3 tokens each, in an order that depends on the epoch."""

    def __init__(self, size: int = 22, seed: int = 5) -> None:
        self.size, self.seed, self.epoch = size, seed, 0

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        index = int(order[position])
        generator = torch.Generator().manual_seed(index)
        return {
            "pixel_values": torch.randn(4, generator=generator),
            "labels": torch.randint(11, (1 + index % 3,), generator=generator),
        }


def fake_collate(samples: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    labels = nn.utils.rnn.pad_sequence([each["labels"] for each in samples], batch_first=True, padding_value=IGNORED)
    return {"pixel_values": torch.stack([each["pixel_values"] for each in samples]), "labels": labels}
