from __future__ import annotations

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from blip2cap.decode.read import read
from blip2cap.errors import ImageError, InputError
from blip2cap.options import DecodeOptions, SourceOptions
from blip2cap.records import ImageRef
from blip2cap.source.inputs import Source
from tests.commands import TINY, invoke, names_below, read_rows

pytestmark = pytest.mark.usefixtures("here")
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NUM_ROWS = 100
PICTURES = [f"row {number}".encode() * 50 for number in range(NUM_ROWS)]


def write(values: Sequence[Any], kind: pa.DataType = HF, *, row_group_size: int = 30, **more: Sequence[Any]) -> None:
    table = pa.table({"image": pa.array(values, kind), **more})
    pq.write_table(table, "x.parquet", row_group_size=row_group_size)


def source(**options) -> Source:
    return Source(SourceOptions(inputs=("x.parquet",), **options))


def content(ref: ImageRef) -> bytes | str:
    try:
        return read(ref, DecodeOptions())
    except ImageError as error:
        return error.code


def as_structs(pictures: list[bytes]) -> list[dict[str, Any]]:
    return [{"bytes": data, "path": f"{number}.jpg"} for number, data in enumerate(pictures)]


@pytest.mark.parametrize("kind", [HF, pa.binary(), pa.large_binary()], ids=str)
def test_every_row_is_an_image_named_by_file_and_number(kind):
    write(as_structs(PICTURES) if kind is HF else PICTURES, kind, label=list(range(NUM_ROWS)))
    images = source()
    stream = images.stream()
    refs = list(stream)
    assert [ref.name for ref in refs] == [f"x.parquet#{number}" for number in range(NUM_ROWS)]
    assert [content(ref) for ref in refs] == PICTURES
    assert images.repeatable
    assert (images.root, not stream.skipped) == (os.getcwd(), True)


def test_rows_without_bytes_are_failed_rows_that_say_why():
    write([None, {"bytes": None, "path": "gone.jpg"}, {"bytes": None, "path": None}, {"bytes": b"", "path": "x"}])
    assert [content(ref) for ref in source()] == ["not_an_image", "vanished", "not_an_image", b""]
    refs = list(source())
    with pytest.raises(ImageError, match=r"no bytes, only the path gone.jpg"):
        read(refs[1], DecodeOptions())


def test_an_image_that_is_larger_than_allowed_fails():
    write([b"x" * 100, b"y"], pa.binary())
    first, second = source()
    with pytest.raises(ImageError, match=r"too_large: 100 bytes is more than 99"):
        read(first, DecodeOptions(max_bytes=99))
    assert read(second, DecodeOptions(max_bytes=99)) == b"y"


@pytest.mark.parametrize("row_group_size", [1, 7, 30, 1000])
def test_rows_may_be_asked_for_in_any_order_and_twice(row_group_size):
    write(as_structs(PICTURES), row_group_size=row_group_size)
    refs = list(source())
    order = [*range(NUM_ROWS), *range(NUM_ROWS)]
    random.Random(row_group_size).shuffle(order)
    for number in order:
        assert content(refs[number]) == PICTURES[number]


def test_rows_may_be_asked_for_by_many_threads():
    write(as_structs(PICTURES), row_group_size=10)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(content, source())) == PICTURES


@pytest.fixture
def batches(monkeypatch):
    """The numbers of rows that were read, batch by batch."""
    lengths: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def noted(self, *args, **kwargs):
        assert args[2] == ["image"], "one column"
        for batch in iter_batches(self, *args, **kwargs):
            lengths.append(len(batch))
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noted)
    return lengths


def test_names_cost_no_reading(batches):
    write(as_structs(PICTURES))
    assert len(list(source())) == NUM_ROWS
    assert batches == []


def test_rows_are_read_once_and_a_few_at_a_time(batches):
    write(as_structs(PICTURES))
    assert [content(ref) for ref in source()] == PICTURES
    assert sum(batches) == NUM_ROWS
    assert max(batches) <= 16


def test_row_groups_that_are_finished_are_passed_over(batches):
    write(as_structs(PICTURES), row_group_size=10)
    refs = list(source())
    assert [content(refs[number]) for number in (3, 95)] == [PICTURES[3], PICTURES[95]]
    assert sum(batches) <= 32


def test_rows_that_nobody_asks_for_do_not_pile_up():
    write(as_structs(PICTURES), row_group_size=NUM_ROWS)
    refs = list(source())
    content(refs[-1])
    assert len(refs[0].load.func.__self__.waiting) <= 64  # type: ignore[union-attr]


def damage(row_group: int) -> None:
    column = pq.ParquetFile("x.parquet").metadata.row_group(row_group).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(Path("x.parquet").read_bytes())
    data[start : start + 40] = b"\xff" * 40
    Path("x.parquet").write_bytes(bytes(data))


def test_a_damaged_row_group_fails_its_rows_and_no_others():
    write([os.urandom(1000) for _ in range(NUM_ROWS)], pa.binary(), row_group_size=50)
    good = [content(ref) for ref in source()]
    damage(row_group=0)
    assert [content(ref) for ref in source()] == ["corrupt"] * 50 + good[50:]


def test_reading_on_over_a_damaged_row_group_reaches_those_behind_it():
    write([os.urandom(1000) for _ in range(NUM_ROWS)], pa.binary(), row_group_size=20)
    good = [content(ref) for ref in source()]
    damage(row_group=1)
    refs = list(source())
    assert [content(refs[number]) for number in (5, 45, 25, 65)] == [good[5], good[45], "corrupt", good[65]]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"hello" * 100, b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1"])
def test_a_file_called_parquet_that_is_none_is_refused_at_once(data):
    Path("x.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"x.parquet: cannot be read as a Parquet file"):
        source()


def test_the_column_is_the_only_one_that_fits_or_must_be_chosen():
    write(as_structs(PICTURES), other=PICTURES, text=["x"] * NUM_ROWS)
    with pytest.raises(InputError, match=r"more than one column could hold images: image \(struct.*other \(binary\)"):
        source()
    assert [content(ref) for ref in source(image_column="other")] == PICTURES
    with pytest.raises(InputError, match=r"image_column text: no such column of image bytes. Its columns: image"):
        source(image_column="text")


def test_a_table_without_images_is_refused_with_its_columns():
    pq.write_table(pa.table({"text": ["x"], "image_list": [[b"x"]]}), "x.parquet")
    with pytest.raises(InputError, match=r"no column could hold images: text \(string\), image_list"):
        source()


def test_an_image_column_without_a_table_is_refused():
    Path("a.jpg").touch()
    with pytest.raises(InputError, match=r"image_column image: no .parquet file is among the inputs"):
        Source(SourceOptions(inputs=("a.jpg",), image_column="image"))


def test_a_table_is_captioned_and_resumed(scenes, here):
    names = names_below(scenes)
    write([*as_structs([(scenes / name).read_bytes() for name in names]), None], row_group_size=2)
    for arguments in (["--limit", "2"], []):
        result = invoke("caption", "x.parquet", *TINY, "--image-column", "image", *arguments)
    assert result.exit_code == 3
    rows = read_rows(here / "captions.jsonl")
    assert [row["file_name"] for row in rows] == [f"x.parquet#{number}" for number in range(len(names) + 1)]
    assert [row["error"] for row in rows] == [""] * len(names) + ["not_an_image"]
    assert "skipped" not in result.stderr
    other = invoke("caption", "x.parquet", *TINY, "--image-column", "other")
    assert other.exit_code == 2


@pytest.mark.parametrize(
    ("error", "code"), [(OSError(5, "Input/output error"), "unreadable"), (OSError("x"), "corrupt")]
)
def test_an_error_of_the_disk_is_no_damage(monkeypatch, error, code):
    write([b"data"] * NUM_ROWS, pa.binary(), row_group_size=50)
    refs = list(source())

    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", failing)
    assert [content(ref) for ref in refs] == [code] * NUM_ROWS
