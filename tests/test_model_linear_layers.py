"""Linear layers are found by name and replaced one at a time, and fused layers stay correct."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from blip2cap.models.blip2.linear_layers import FusedPart, fuse, replace_linears


class Attention(nn.Module):
    """Has projections to fuse."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        for name, size in zip(names, (8, 8, 4), strict=False):
            setattr(self, name, nn.Linear(8, size))


class Double(nn.Module):
    """Gives twice what a Linear gave."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight.detach().clone(), linear.bias.detach().clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * nn.functional.linear(x, self.weight, self.bias)


def network() -> nn.Module:
    return nn.ModuleDict(
        {
            "layers": nn.ModuleList([nn.ModuleDict({"fc1": nn.Linear(8, 8), "wo": nn.Linear(8, 8)}) for _ in range(2)]),
            "qformer": nn.ModuleDict({"deep": nn.Sequential(nn.Linear(8, 8), nn.ReLU())}),
            "words": nn.Linear(8, 8),
        }
    )


def names_of(module: nn.Module, kind: type) -> set[str]:
    return {name for name, child in module.named_modules() if type(child) is kind}


def test_every_linear_is_replaced_but_those_below_a_name_of_the_list():
    whole = network()
    assert replace_linears(whole, Double, never=("qformer", "wo")) == 3
    assert names_of(whole, Double) == {"layers.0.fc1", "layers.1.fc1", "words"}
    assert names_of(whole, nn.Linear) == {"layers.0.wo", "layers.1.wo", "qformer.deep.0"}


def test_none_leaves_a_layer_as_it_is():
    whole = network()
    assert replace_linears(whole, lambda linear: None) == 0
    assert names_of(whole, Double) == set()


def test_other_kinds_of_linear_are_left_alone():
    class Quantised(nn.Linear):
        """A quantised weight, as in bitsandbytes."""

    whole = nn.Sequential(Quantised(8, 8), nn.Linear(8, 8))
    assert replace_linears(whole, Double) == 1
    assert type(whole[0]) is Quantised


def test_an_old_weight_is_gone_before_the_next_layer_is_made():
    whole = network()
    old: list[weakref.ref[torch.Tensor]] = []

    def make(linear: nn.Linear) -> nn.Module:
        assert [weight for weight in old if weight() is not None] == []
        old.append(weakref.ref(linear.weight))
        return Double(linear)

    assert replace_linears(whole, make) == 6
    assert old[-1]() is None


@pytest.mark.parametrize(
    ("names", "fused", "alone"),
    [
        (("q_proj", "k_proj", "v_proj"), "qkv", None),
        (("q", "k", "v"), "qkv", None),
        (("k", "v"), "kv", "q"),
    ],
)
def test_fused_projections_are_replaced_together_and_stay_right_apart(names, fused, alone):
    attention = Attention(names)
    if alone:
        setattr(attention, alone, nn.Linear(8, 8))
    x = torch.randn(2, 3, 8)
    expected = {name: 2 * getattr(attention, name)(x) for name in (*names, *([alone] if alone else []))}
    fuse(attention, names, fused)
    storage = weakref.ref(getattr(attention, names[0]).weight)
    assert replace_linears(attention, Double) == 1 + bool(alone)
    assert names_of(attention, nn.Linear) == set(), "a view of the old weight would keep it"
    assert storage() is None
    assert names_of(attention, FusedPart) == set(names)
    for name, result in expected.items():
        torch.testing.assert_close(getattr(attention, name)(x), result)
    torch.testing.assert_close(getattr(attention, fused)(x), torch.cat([expected[name] for name in names], dim=-1))


def test_fused_projections_that_are_left_alone_stay_views():
    attention = Attention(("q", "k", "v"))
    fuse(attention, ("q", "k", "v"), "qkv")
    assert replace_linears(attention, lambda linear: None) == 0
    assert names_of(attention, nn.Linear) == {"qkv", "q", "k", "v"}


def test_a_tower_whose_qkv_was_never_apart_has_no_parts():
    tower = nn.ModuleDict({"qkv": nn.Linear(8, 24)})
    assert replace_linears(tower, Double) == 1
    assert names_of(tower, FusedPart) == set()
