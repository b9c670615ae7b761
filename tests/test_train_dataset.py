"""Samples of an epoch: mixed by weight, drawn by share, decoded as a run does; the same in any process."""

import contextlib
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from blip2cap.decode.image import decode
from blip2cap.decode.read import read
from blip2cap.errors import ImageError, InputError
from blip2cap.models.blip2.resize import choose_resizer
from blip2cap.options import DecodeOptions
from blip2cap.train.data.dataset import TrainDataset
from blip2cap.train.data.example import DataSet, Example, Share
from blip2cap.train.data.mix import epoch_length, epoch_order


def shares(*pairs):
    return tuple(Share(num_examples=size, weight=weight) for size, weight in pairs)


def counts(order, size):
    return np.bincount(order, minlength=size).tolist()


def test_an_epoch_has_every_example_once_in_an_order_of_its_own():
    orders = [epoch_order(shares((50, 1.0)), seed=3, epoch=epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert (epoch_order(shares((50, 1.0)), seed=3, epoch=1) == orders[1]).all()
    assert (epoch_order(shares((50, 1.0)), seed=4, epoch=1) != orders[1]).any()


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.5])
def test_a_mixed_set_adds_examples_by_its_weight_and_uses_all_equally(weight):
    mixed = shares((40, 1.0), (9, weight))
    total = Counter[int]()
    for epoch in range(9):
        order = epoch_order(mixed, seed=1, epoch=epoch)
        assert len(order) == epoch_length(mixed) == 40 + 40 * weight
        assert counts(order, 49)[:40] == [1] * 40
        total.update(order.tolist())
        used = [total[index] for index in range(40, 49)]
        assert max(used) - min(used) <= 1
    assert [total[index] for index in range(40, 49)] == [40 * weight] * 9


def test_mixed_examples_are_spread_over_the_epoch():
    order = epoch_order(shares((500, 1.0), (500, 1.0)), seed=0, epoch=0)
    assert 200 < (order[:500] >= 500).sum() < 300


def test_an_empty_set_adds_nothing():
    assert sorted(epoch_order(shares((3, 1.0), (0, 0.5)), seed=0, epoch=5)) == [0, 1, 2]


def example(path, *texts, question=None, weights=(1.0,)):
    return Example(
        path=str(path), name=path.name, question=question, texts=texts, weights=weights, where="train.json:1"
    )


@pytest.fixture
def photo(tmp_path):
    """A JPEG of 80 x 40 that is shown upright as 40 x 80, blue above red."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:] = (0, 0, 255), (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    return path


def dataset(*examples, size=16, **settings):
    return TrainDataset(DataSet(examples=examples, shares=shares((len(examples), 1.0))), size, **settings)


def test_pixels_are_those_of_a_run(photo):
    sample = dataset(example(photo, "a flag"), seed=0)[0]
    expected = decode(photo.read_bytes(), 16, DecodeOptions(), choose_resizer()).pixels_HWC
    assert sample.pixels.dtype == torch.uint8
    assert sample.pixels.is_contiguous()
    assert (sample.pixels.permute(1, 2, 0).numpy() == expected).all()
    assert sample.pixels[:, 1, 8].tolist()[2] > 200  # upright: blue is above
    assert sample.pixels[:, 14, 8].tolist()[0] > 200


def test_answers_are_drawn_by_their_shares_from_seed_epoch_and_position(photo):
    examples = [example(photo, "yes", "no", question="is it?", weights=(0.8, 0.2))] * 200
    data = dataset(*examples, size=4, seed=7)
    first = [data[index].target for index in range(200)]
    assert 130 < first.count("yes") < 185
    assert first == [data[index].target for index in range(200)]
    data.set_epoch(1)
    assert first != [data[index].target for index in range(200)]


def test_without_shuffling_examples_are_in_order_with_their_most_common_answer(photo):
    answers = example(photo, "no", "yes", question="is it?", weights=(0.2, 0.8))
    data = dataset(answers, example(photo, "a flag"), shuffle=False)
    assert [(data[index].index, data[index].target) for index in range(2)] == [(0, "yes"), (1, "a flag")]


def test_examples_of_the_same_file_have_the_same_image_number(photo, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (4, 4)).save(other)
    data = dataset(example(photo, "1"), example(other, "2"), example(photo, "3"), shuffle=False)
    assert [data[index].image for index in range(3)] == [0, 1, 0]


def test_processes_that_outlive_an_epoch_see_the_next_one(photo):
    data = dataset(*(example(photo, str(number)) for number in range(8)), size=4, seed=1)
    loader = DataLoader(
        data,
        batch_size=4,
        num_workers=1,
        persistent_workers=True,
        collate_fn=lambda samples: [sample.target for sample in samples],
    )
    seen = []
    for epoch in range(2):
        data.set_epoch(epoch)
        seen.append([target for batch in loader for target in batch])
        assert seen[epoch] == [data[index].target for index in range(8)]
    assert seen[0] != seen[1]


def test_an_image_that_cannot_be_read_is_an_error_that_names_it_and_the_next_step(tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n")
    with pytest.raises(InputError, match=r"^train\.json:1: .*broken\.png: .*Restore it, then start the same command"):
        dataset(example(broken, "x"))[0]


@pytest.mark.parametrize(("num_failures", "is_read"), [(3, True), (4, False)])
def test_an_error_of_the_disk_that_passes_costs_nothing(photo, monkeypatch, num_failures, is_read):
    failures = iter([ImageError("unreadable", "Input/output error")] * num_failures)

    def read_at_last(ref, options):
        for failure in failures:
            raise failure
        return read(ref, options)

    waits: list[float] = []
    monkeypatch.setattr("blip2cap.train.data.dataset.read", read_at_last)
    monkeypatch.setattr("blip2cap.train.data.dataset.time.sleep", waits.append)
    with contextlib.nullcontext() if is_read else pytest.raises(InputError, match="unreadable: Input/output error"):
        dataset(example(photo, "a flag"))[0]
    assert waits == [1.0, 5.0, 20.0]
