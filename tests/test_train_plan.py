"""Steps and batches: what is given, and what it comes to."""

import pytest
import torch

from blip2cap.errors import UsageError
from blip2cap.train.options.loop import LoopOptions
from blip2cap.train.plan import choose_dtype, make_plan


def test_a_plan_counts_whole_batches():
    plan = make_plan(LoopOptions(epochs=3, batch_size=8, accumulate=2), num_examples=30, num_processes=2)
    assert (plan.steps_per_epoch, plan.num_steps, plan.device_batch) == (3, 9, 2)
    assert (plan.evaluate_every, plan.checkpoint_every) == (3, 3)


def test_max_steps_replaces_epochs():
    plan = make_plan(LoopOptions(max_steps=5, evaluate_every=2), num_examples=30, num_processes=1)
    assert (plan.num_steps, plan.evaluate_every) == (5, 2)


def test_too_few_examples_for_a_batch_are_refused():
    with pytest.raises(UsageError, match=r"batch_size 16: there are only 15 examples. Use at most 15."):
        make_plan(LoopOptions(batch_size=16), num_examples=15, num_processes=1)


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UsageError, match=r"cannot be divided into 3 processes with accumulate 2 parts each. .* of 6."):
        make_plan(LoopOptions(batch_size=16, accumulate=2), num_examples=99, num_processes=3)


def test_a_batch_that_accumulation_cannot_split_is_refused():
    with pytest.raises(UsageError, match=r"batch_size 9 cannot be split into accumulate 2 equal parts"):
        LoopOptions(batch_size=9, accumulate=2)


def test_the_dtype_of_a_cpu_is_float32_unless_given():
    assert choose_dtype(LoopOptions(device="cpu")) == torch.float32
    assert choose_dtype(LoopOptions(device="cpu", dtype="bfloat16")) == torch.bfloat16
    with pytest.raises(UsageError, match=r"dtype float16: needs a GPU in training. Use float32 or bfloat16."):
        choose_dtype(LoopOptions(device="cpu", dtype="float16"))
