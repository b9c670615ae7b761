from __future__ import annotations

import csv
import errno
import json
import os
import re
import stat
from pathlib import Path

import pandas
import polars
import pyarrow.parquet as pq
import pytest

from blip2cap.errors import OutputError, UsageError
from blip2cap.outputs.export import tables
from blip2cap.outputs.files import OsFiles
from blip2cap.outputs.open import open_rows
from blip2cap.rows import Row
from tests.exports import HOSTILE, answer, caption, failure, make_images, names_in, run
from tests.files import Counting, Failing
from tests.rows import text_row

NAMES = ["=cmd.jpg", "-x.jpg", "plain,name.jpg", *(f"{number}.jpg" for number in range(len(HOSTILE) - 3))]
ROWS = [*map(caption, NAMES, HOSTILE)]
ANSWERS = [answer("a.jpg", "what?", "a cat"), answer("a.jpg", "=where?", "@here"), failure("b.jpg", question="what?")]
SEVERAL = [caption("a.jpg", "one", texts=("one", "=two")), caption("b.jpg", "three", texts=("three",))]
FORMULA = tuple("=+-@\t\r")


def read_csv(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(1 << 20)
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_csv_file_holds_every_text_and_no_cell_that_a_spreadsheet_would_run(tmp_path: Path) -> None:
    run(tmp_path, [*ROWS, failure("bad.jpg")], "csv", out=tmp_path / "out.csv")
    read = read_csv(tmp_path / "out.csv")
    assert list(read[0]) == ["file_name", "file_name_b64", "text", "finish_reason", "num_tokens", "width", "height"]
    for row, name, text in zip(read, NAMES, HOSTILE, strict=True):
        for cell, value in ((row["file_name"], name), (row["text"], text)):
            assert cell == (f"'{value}" if value[0] in FORMULA else value)
        assert (row["width"], row["height"]) == ("4", "3")
    assert sum(row["text"].startswith("'") for row in read) == 6


def test_pandas_and_polars_read_the_csv(tmp_path: Path) -> None:
    texts = [text for text in HOSTILE if "\0" not in text and "\r" not in text]
    run(tmp_path, [caption(f"{number}.jpg", text) for number, text in enumerate(texts)], "csv", out=tmp_path / "o.csv")
    expected = [tables.cell(text) for text in texts]
    assert list(pandas.read_csv(tmp_path / "o.csv", keep_default_na=False)["text"]) == expected
    assert polars.read_csv(tmp_path / "o.csv")["text"].to_list() == expected


def test_the_text_s_column_has_the_name_that_was_asked_for(tmp_path: Path) -> None:
    run(tmp_path, ROWS[:1], "csv", out=tmp_path / "c.csv", column="caption", prefix={"": "="}, suffix={"": "!"})
    assert read_csv(tmp_path / "c.csv")[0]["caption"] == "'=a cat!"
    run(tmp_path, ANSWERS, "csv", out=tmp_path / "a.csv", column="said")
    assert [(row["question"], row["said"]) for row in read_csv(tmp_path / "a.csv")] == [
        ("what?", "a cat"),
        ("'=where?", "'@here"),
    ]


def test_several_captions_are_json_in_one_cell(tmp_path: Path) -> None:
    run(tmp_path, SEVERAL, "csv", out=tmp_path / "c.csv")
    assert [json.loads(row["texts"]) for row in read_csv(tmp_path / "c.csv")] == [["one", "=two"], ["three"]]


@pytest.mark.parametrize("rows", [ROWS, ANSWERS, SEVERAL, []], ids=["captions", "answers", "several", "none"])
@pytest.mark.parametrize("to", ["parquet", "jsonl"])
def test_rows_that_are_ok_come_back_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, rows: list[Row]
) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP", 4)  # more than one row group
    out = tmp_path / f"out.{to}"
    run(tmp_path, [*rows, *(failure("bad.jpg", **_kind(rows)) for _ in range(2))], to, out=out)
    assert list(open_rows(str(out))) == [row for row in rows if row.status == "ok"]


def _kind(rows: list[Row]) -> dict[str, object]:
    """Return the columns that tell rows of one run from those of another."""
    if not rows:
        return {}
    return {"question": rows[0].question, "texts": None if rows[0].texts is None else ()}


def test_parquet_is_typed_compressed_and_in_order_for_every_reader(tmp_path: Path) -> None:
    run(tmp_path, ROWS, "parquet", out=tmp_path / "o.parquet")
    file = pq.ParquetFile(tmp_path / "o.parquet")
    assert {column.type for column in file.schema_arrow} == {"string", "int64"}
    assert {file.metadata.row_group(0).column(index).compression for index in range(9)} == {"ZSTD"}
    assert list(pandas.read_parquet(tmp_path / "o.parquet")["text"]) == HOSTILE
    assert polars.read_parquet(tmp_path / "o.parquet").to_dicts() == [row.as_dict() for row in ROWS]


def test_an_empty_table_says_what_its_columns_are(tmp_path: Path) -> None:
    for to in ("csv", "parquet"):
        run(tmp_path, [failure("bad.jpg")], to, out=tmp_path / f"o.{to}")
    assert list(pandas.read_csv(tmp_path / "o.csv").columns)[:3] == ["file_name", "file_name_b64", "text"]
    assert pq.read_table(tmp_path / "o.parquet").column_names == list(
        text_row(file_name="", file_name_b64="").as_dict()
    )


def test_answers_to_one_question_can_be_had_alone_and_a_wrong_one_leaves_no_file(tmp_path: Path) -> None:
    run(tmp_path, ANSWERS, "jsonl", out=tmp_path / "o.jsonl", question="=where?")
    assert list(open_rows(str(tmp_path / "o.jsonl"))) == [ANSWERS[1]]
    with pytest.raises(UsageError, match="nobody asked that"):
        run(tmp_path, ANSWERS, "jsonl", out=tmp_path / "none.jsonl", question="who?")
    assert not [name for name in names_in(tmp_path) if "none" in name or "tmp" in name]


def test_a_file_that_is_there_is_replaced_only_if_told_to(tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    out.write_text("before")
    with pytest.raises(UsageError, match=r"o\.csv exists"):
        run(tmp_path, ROWS, "csv", out=out)
    assert out.read_text() == "before"
    run(tmp_path, ROWS, "csv", out=out, existing="overwrite")
    assert len(read_csv(out)) == len(ROWS)


def test_a_folder_that_is_missing_is_an_output_error(tmp_path: Path) -> None:
    for to in ("csv", "parquet", "coco"):
        with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
            run(tmp_path, ROWS, to, out=tmp_path / "missing" / f"o.{to}")


class FullDisk(OsFiles):
    """Files on a disk with space for only a few bytes."""

    def __init__(self) -> None:
        self.num_free = 1_000

    def write(self, file: int, data: bytes | memoryview) -> int:
        """Write as long as there is space."""
        if not self.num_free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = super().write(file, memoryview(data)[: self.num_free])
        self.num_free -= taken
        return taken


@pytest.mark.parametrize("to", ["csv", "parquet", "jsonl", "coco", "webdataset"])
def test_a_full_disk_is_an_output_error_and_leaves_nothing(tmp_path: Path, to: str) -> None:
    (tmp_path / "out").mkdir()
    rows, root = ROWS * 50 if to != "coco" else ROWS, make_images(tmp_path / "imgs", "0.jpg")
    rows, name = ([caption("0.jpg", "long " * 9000)], "out/00000.tar") if to == "webdataset" else (rows, f"out/o.{to}")
    out = tmp_path / ("out" if to == "webdataset" else name)
    with pytest.raises(OutputError, match=rf"{re.escape(name)} cannot be written: No space left on device"):
        run(tmp_path, rows, to, root=root, out=out, files=FullDisk())
    assert names_in(tmp_path / "out") == []


@pytest.mark.parametrize("to", ["csv", "parquet"])
def test_any_file_operation_of_an_export_may_fail(tmp_path: Path, to: str) -> None:
    counting = Counting()
    run(tmp_path, ROWS, to, out=tmp_path / "well", files=counting)
    assert {"open", "write", "fsync", "close", "replace"} <= {*counting.names}
    (tmp_path / "out").mkdir()
    for at, name in enumerate(counting.names):
        (tmp_path / "out/there").write_text("before")
        with pytest.raises(OutputError, match=r"there cannot be written: Input/output error"):
            run(tmp_path, ROWS, to, out=tmp_path / "out/there", existing="overwrite", files=Failing(at, errno.EIO))
        whole = (tmp_path / "out/there").read_bytes()
        renamed = at > counting.names.index("replace")
        assert (whole == (tmp_path / "well").read_bytes()) == renamed, name
        assert (whole == b"before") != renamed
        assert names_in(tmp_path / "out") == ["there"]


def test_a_file_keeps_its_permissions_when_it_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "o.csv").touch()
    (tmp_path / "o.csv").chmod(0o600)
    run(tmp_path, ROWS, "csv", out=tmp_path / "o.csv", existing="overwrite")
    assert stat.S_IMODE((tmp_path / "o.csv").stat().st_mode) == 0o600
    assert len(read_csv(tmp_path / "o.csv")) == len(ROWS)
