"""Recipes as TOML: what is written is read again, and differences are named."""

import dataclasses
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip2cap.errors import UsageError
from blip2cap.flags import flags_of
from blip2cap.train.options.data import DataOptions
from blip2cap.train.options.loop import LoopOptions
from blip2cap.train.options.model import OptimOptions, TuneOptions
from blip2cap.train.recipe_file import (
    SHIPPED,
    differences,
    find_recipe,
    read_recipe,
    shipped_names,
    table_of,
    toml,
)

TEXTS = st.text(max_size=9)
VALUES = st.one_of(st.booleans(), st.integers(0, 10**9), st.floats(0, 1e9), TEXTS, st.lists(TEXTS, max_size=3))


@given(VALUES)
def test_what_is_written_is_what_is_read(value):
    recipe = {"task": "vqa", "loop": {"a-b": value, "c": 1}}
    assert tomllib.loads(toml(recipe)) == recipe


def test_a_path_that_is_no_utf_8_can_be_written():
    table = table_of(DataOptions(data=("caf\udce9.json",)))
    assert tomllib.loads(toml({"data": table}).encode().decode())["data"]["data"] == ["caf\\udce9.json"]


def test_options_are_named_by_their_flags_without_the_empty_ones():
    table = table_of(LoopOptions(max_steps=7), TuneOptions(train=("qformer", "lora")))
    assert table["max-steps"] == 7
    assert table["train"] == ("qformer", "lora")
    assert "evaluate-every" not in table
    assert "lora-targets" not in table


TASKS = {"stage1": "stage1", "stage2": "stage2", "coco-caption": "caption", "vqa": "vqa"}
"""Tasks of the recipes that are for one only."""


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_recipe_has_options_of_the_command_in_their_sections(name):
    classes = {
        "data": (DataOptions,),
        "model": (TuneOptions,),
        "optim": (OptimOptions,),
        "loop": (LoopOptions,),
    }
    recipe = read_recipe(SHIPPED / f"{name}.toml")
    assert recipe.pop("task", None) == TASKS.get(name)
    for section, table in recipe.items():
        known = {its_flag.long_name: field.name for each in classes[section] for field, its_flag in flags_of(each)}
        given = {key: value for key, value in table.items() if (section, key) != ("model", "model")}
        assert not given.keys() - known.keys()
        values = {known[key]: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
        classes[section][0](**values)  # which checks them


def test_differences_are_named_by_flags():
    old = {"task": "caption", "optim": {"learning-rate": 1e-5}, "loop": {"num-workers": 2}, "found": {"examples": 3}}
    new = {"task": "caption", "optim": {"learning-rate": 1e-4, "beta2": 0.9}, "loop": {}, "found": {"examples": 4}}
    assert differences(old, new, without=frozenset({"num-workers"})) == [
        "--learning-rate 1e-05, now 0.0001",
        "--beta2 not given, now 0.9",
        "examples 3, now 4",
    ]
    assert differences(old, old, without=frozenset()) == []


def test_lists_in_files_equal_tuples_of_options():
    assert differences({"model": {"train": ["lora"]}}, {"model": {"train": ("lora",)}}, without=frozenset()) == []


def test_a_recipe_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(UsageError, match=r"recipe nope: no such file. Expected a TOML file, or one of coco-caption, "):
        find_recipe("nope")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = ", "not TOML: "),
        ("[lop]\nepochs = 1", r"unknown section \[lop\]. Expected \[data\], "),
        ("loop = 3", "loop"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_recipe(tmp_path / "r.toml")


def test_every_option_of_a_training_has_a_flag_with_a_name_of_its_own():
    names = [
        its_flag.long_name
        for each in (DataOptions, TuneOptions, OptimOptions, LoopOptions)
        for _, its_flag in flags_of(each)
    ]
    assert len(names) == len({*names})
    assert len(names) == sum(
        len(dataclasses.fields(each)) for each in (DataOptions, TuneOptions, OptimOptions, LoopOptions)
    )
