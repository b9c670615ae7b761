"""A check of data finds what would spoil a training, and where."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from blip2cap.errors import InputError
from blip2cap.options import DecodeOptions
from blip2cap.train.data.check import check
from blip2cap.train.data.collate import make_collator
from blip2cap.train.data.read import read_data
from blip2cap.train.data.report import usable
from blip2cap.train.options.data import DataOptions
from blip2cap.train.plot import plot_losses
from blip2cap.train.run_folder import RunFolder
from tests.training_data import read_base


def draw(folder, *names):
    """Save images that all differ."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len([*folder.rglob("*")])).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def save(path, rows):
    """Save a list with an entry on each line."""
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    return str(path)


def captions(*names, **more):
    return [{"image": name, "caption": f"picture {name}", **more} for name in names]


def examine(here, rows, *, val=None, base=None, task="caption", decode=None, **options):
    """Check rows; return the data and the report."""
    given = DataOptions(
        data=(save(here / "train.json", rows),),
        val=(save(here / "val.json", val),) if val is not None else (),
        images=options.pop("images", (str(here / "pictures"),)),
        **options,
    )
    data = read_data(given, task)
    collate = None if base is None else make_collator(base, given)
    return data, check(data, decode or DecodeOptions(num_threads=2), collate=collate)


def found(report):
    return [(problem.reason, problem.where, problem.detail) for problem in report.train]


@pytest.fixture
def pictures(here):
    folder = here / "pictures"
    draw(folder, "a.png", "b.png", "c.png")
    return folder


def test_good_data_have_no_problem(here, pictures):
    data, report = examine(here, captions("a.png", "b.png", "c.png"))
    assert (found(report), report.num_images, report.num_errors, report.num_warnings) == ([], 3, 0, 0)
    assert usable(data, report, skip_bad=False) == data


def test_images_that_cannot_be_read_are_errors_of_every_example_with_them(here, pictures):
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:60])
    (pictures / "c.png").write_text("not an image")
    data, report = examine(here, captions("a.png", "b.png", "none.png", "c.png", "b.png"))
    assert [(problem.reason, problem.where, problem.example) for problem in report.train][:4] == [
        ("unreadable image", "train.json:3", 1),
        ("missing image", "train.json:4", 2),
        ("unreadable image", "train.json:5", 3),
        ("unreadable image", "train.json:6", 4),
    ]
    assert report.train[0].detail == f"{pictures}/b.png: truncated: image file is truncated"
    assert report.train[1].detail == f"{pictures}/none.png: vanished: no such file"
    assert report.num_images == 4
    with pytest.raises(InputError) as error:
        usable(data, report, skip_bad=False)
    assert error.value.message.startswith(
        "4 bad examples: 1 missing image (train.json:4); "
        "3 unreadable image (train.json:3, train.json:5, train.json:6). `blip2cap check-data` shows all; "
    )
    left = usable(data, report, skip_bad=True).train
    assert [example.name for example in left.examples] == ["a.png"]
    assert left.shares[0].num_examples == 1


def test_an_image_in_an_archive_is_an_error_that_says_how_to_extract_it(here, pictures):
    report = examine(here, captions("a.png", "shard.tar#b.png"))[1]
    assert report.train[0].reason == "missing image"
    assert report.train[0].detail.endswith(
        "`blip2cap export ROWS --to imagefolder --out DIR` copies images out of archives"
    )


def test_no_example_left_is_an_error(here, pictures):
    data, report = examine(here, captions("none.png"))
    with pytest.raises(InputError, match="no example is left"):
        usable(data, report, skip_bad=True)
    data, report = examine(here, [])
    with pytest.raises(InputError, match="no example in it"):
        usable(data, report, skip_bad=False)


def test_isolated_decoding_finds_the_same(here, pictures):
    (pictures / "b.png").write_bytes(b"")
    decode = DecodeOptions(num_threads=1, isolate=True)
    assert found(examine(here, captions("a.png", "b.png", "c.png"), decode=decode)[1]) == [
        ("unreadable image", "train.json:3", f"{pictures}/b.png: truncated: the file is empty")
    ]


def test_entries_that_are_no_examples_are_in_the_report(here, pictures):
    rows = [*captions("a.png", "b.png"), {"image": "c.png"}, {"image": "c.png", "caption": ""}]
    data, report = examine(here, rows)
    assert [(reason, where) for reason, where, _ in found(report)][:2] == [
        ("absent key", "train.json:4"),
        ("empty text", "train.json:5"),
    ]
    assert len(usable(data, report, skip_bad=True).train.examples) == 2


def test_the_plot_of_a_training_among_the_images_is_none_of_them(here, pictures):
    (pictures / "RUN").mkdir()
    plot_losses([{"step": 1, "loss": 2.0}], pictures / "RUN", title="caption: tiny")
    names = ("a.png", "b.png", "c.png")
    assert found(examine(here, captions(*names))[1]) == [("unreferenced image", f"{pictures}/RUN/loss.png", "")]
    RunFolder(pictures / "RUN").recipe.touch()
    assert found(examine(here, captions(*names))[1]) == []
    draw(pictures, "RUN/other.png")
    assert found(examine(here, captions(*names))[1]) == [("unreferenced image", f"{pictures}/RUN/other.png", "")]


def test_files_that_nothing_names_are_found_in_folders_below_too(here, pictures):
    draw(pictures, "sub/d.png", "sub/e.png")
    os.symlink("a.png", pictures / "link.png")
    report = examine(here, captions("a.png", "sub/e.png"), val=captions("c.png"))[1]
    assert found(report) == [
        ("unreferenced image", f"{pictures}/b.png", ""),
        ("unreferenced image", f"{pictures}/sub/d.png", ""),
    ]
    assert (report.num_errors, report.num_warnings) == (0, 2)


def test_duplicates_are_the_same_image_with_the_same_texts(here, pictures):
    rows = captions("a.png", "b.png", "c.png", "a.png")
    rows[3]["caption"] = " picture  a.png"
    assert found(examine(here, rows)[1]) == [("duplicate", "train.json:5", "a.png: the same as train.json:2")]
    rows[3]["caption"] = "another"
    assert found(examine(here, rows)[1]) == []


def test_the_same_picture_is_found_under_another_name(here, pictures):
    Image.open(pictures / "a.png").save(pictures / "d.bmp")
    detail = "d.bmp is the same picture as a.png (train.json:2)"
    report = examine(here, captions("a.png", "b.png", "c.png", "d.bmp", "d.bmp"))[1]
    assert ("equal images", "train.json:5", detail) in found(report)
    assert report.by_reason["equal images"] == 1


def test_pictures_that_are_trained_and_evaluated_on_are_found_under_other_names_too(here, pictures):
    Image.open(pictures / "a.png").save(pictures / "d.bmp")
    report = examine(here, captions("a.png", "b.png"), val=captions("c.png", "d.bmp", "b.png"))[1]
    assert [(each.reason, each.where, each.detail) for each in report.val] == [
        ("train/val overlap", "val.json:3", "d.bmp is trained on too (train.json:2)"),
        ("train/val overlap", "val.json:4", "b.png is trained on too (train.json:3)"),
    ]
    assert report.train == ()


@pytest.mark.parametrize("text", ["<image>\nis it?", "is it <image>?"])
def test_placeholders_of_images_in_texts_are_errors(here, pictures, text):
    rows = [{"image": "a.png", "question": text, "answer": ["yes"]}, *questions("b.png", "c.png", answer="no")]
    report = examine(here, rows, task="vqa")[1]
    assert found(report)[0] == ("image token", "train.json:2", " ".join(text.split()))
    assert report.num_errors == 1


def questions(*names, answer="yes"):
    return [{"image": name, "question": f"is it {name}?", "answer": [answer]} for name in names]


def test_an_answer_that_is_nearly_always_right_is_warned_of(here, pictures):
    rows = [*questions(*["a.png"] * 9, answer="Yes"), *questions("b.png", "c.png", answer="no")]
    rows = [row | {"question": f"{row['question']} {number}"} for number, row in enumerate(rows)]
    report = examine(here, rows, task="vqa")[1]
    assert found(report) == [("answer balance", "", '"yes" is the answer of 82 % of the questions')]
    assert found(examine(here, rows[1:], task="vqa")[1]) == []  # 8 of 10
    other = save(here / "other.json", questions("b.png", "c.png", answer="no"))
    assert found(examine(here, rows, task="vqa", mix=(f"{other}:0.1",))[1]) == []  # one more "no"
    assert len(found(examine(here, rows, task="vqa", mix=(f"{other}:0.01",))[1])) == 1  # none more


def test_ids_that_disagree_with_names_are_errors_if_most_agree(here, pictures):
    names = [f"VG_100K/{number}.png" for number in range(10)]
    draw(pictures, *names)
    rows = [each | {"image_id": number} for number, each in enumerate(captions(*names))]
    rows[4]["image_id"] = 11
    _, report = examine(here, rows, images=(str(pictures),))
    assert found(report)[0] == ("mismatched ids", "train.json:6", "image_id 11 with VG_100K/4.png")
    assert report.num_errors == 1
    for number, row in enumerate(rows):
        row["image_id"] = 1000 + number  # ids of something else
    assert examine(here, rows)[1].num_errors == 0


def test_ids_of_a_mixed_set_are_its_own(here, pictures):
    names = [f"{letter}.png" for letter in "abcdefghijkl"]
    draw(pictures, *names[3:])
    rows = [each | {"image_id": number} for number, each in enumerate(captions(*names[:10]))]
    other = save(
        here / "other.json", [each | {"image_id": number} for number, each in enumerate(captions(*names[10:]))]
    )
    assert examine(here, rows, mix=(f"{other}:0.5",))[1].num_errors == 0


def test_an_id_of_two_images_is_an_error_if_most_have_one(here, pictures):
    names = [f"{letter}.png" for letter in "abcdefghij"]
    draw(pictures, *names[3:])
    rows = [each | {"image_id": f"id-{each['image']}"} for each in captions(*names, *names)]
    rows[15]["image_id"] = "id-a.png"
    _, report = examine(here, rows)
    errors = [each for each in found(report) if each[0] == "mismatched ids"]
    assert errors == [("mismatched ids", "train.json:17", "image_id id-a.png is a.png and f.png")]
    for number, row in enumerate(rows):
        row["image_id"] = f"id-{number % 3}"  # ids of something else
    assert examine(here, rows)[1].num_errors == 0


def test_texts_that_are_truncated_are_warned_of_and_those_that_do_not_fit_are_errors(here, pictures, checkpoints):
    base = read_base(checkpoints("opt"))  # 64 positions, 4 of them for the image
    rows = [
        {"image": "a.png", "question": "what is it?", "answer": ["w1 w2 w3"]},
        {"image": "b.png", "question": "what is it?", "answer": ["w1", "w1 w2 w3 w4"]},
        {"image": "c.png", "question": " ".join(["what"] * 54), "answer": ["w1"]},
        {"image": "a.png", "question": " ".join(["what"] * 53), "answer": ["w1"]},
        {"image": "a.png", "question": " ".join(["what"] * 51), "answer": ["w1 w2 w3 w4"]},
    ]
    report = examine(here, rows, task="vqa", base=base, max_tokens=4)[1]
    assert [each for each in found(report) if each[0] != "answer balance"] == [
        ("truncated text", "train.json:3", "5 tokens, 4 are kept: w1 w2 w3 w4"),
        ("too long", "train.json:4", f"65 tokens, the model has 64 positions: {rows[2]['question']}"),
        ("truncated text", "train.json:6", "5 tokens, 4 are kept: w1 w2 w3 w4"),
    ]
    assert report.train[1].example == 2


def test_instructions_that_do_not_fit_the_qformer_are_errors(here, pictures, checkpoints):
    base = read_base(checkpoints("instructblip-t5"))  # T5 has no limit, its Q-Former 64 positions
    rows = [{"image": "a.png", "question": " ".join(["what"] * size), "answer": ["w1"]} for size in (63, 64)]
    report = examine(here, rows, task="vqa", base=base)[1]
    detail = f"65 tokens, the Q-Former has 64 positions: {rows[1]['question']}"
    assert [each for each in found(report) if each[0] == "too long"] == [("too long", "train.json:3", detail)]


def test_texts_for_the_first_stage_are_measured_with_begin_and_end(here, pictures, checkpoints):
    base = read_base(checkpoints("matching"))
    rows = [{"image": "a.png", "caption": "w1 w2"}, {"image": "b.png", "caption": "w1 w2 w3"}]
    report = examine(here, rows, base=base, max_tokens=4)[1]
    assert found(report)[0] == ("truncated text", "train.json:3", "5 tokens, 4 are kept: w1 w2 w3")


def test_progress_counts_each_file_once(here, pictures):
    data = read_data(
        DataOptions(data=(save(here / "t.json", captions("a.png", "a.png", "x.png")),), images=(str(pictures),)), None
    )
    calls = []
    check(data, DecodeOptions(), progress=lambda *numbers: calls.append(numbers))
    assert calls[-1] == (2, 1)
