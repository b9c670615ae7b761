"""Outputs in other libraries: the same columns, types and rows everywhere, also during a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blip2cap.records import ImageRef
from blip2cap.rows import Row
from tests.outputs import KINDS, open_output
from tests.rows import SETTINGS, text_row

# pandas, polars and duckdb are imported where they are used: each takes a while.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:dill.*"),
]

HOSTILE = [
    ImageRef(path="", name="bad first.jpg"),
    ImageRef(path="", name="caf\udce9\udcff.jpg"),
    ImageRef(path="", name='кот 🐈, "x"\t\\.jpg'),
    ImageRef(path="", name="new\nline\u2028.jpg"),
    ImageRef(path="", name="-1.5e3.jpg"),
    ImageRef(path="", name="empty.jpg"),
    ImageRef(path="", name="null.jpg"),
]
TEXTS = ["", "two\u2028lines\u2029and\x85three\r\nand four", "🐈‍⬛ {} [] \0 \x1b[31m", '"quoted" \\', "1", "", "null"]
INTEGERS = ("num_tokens", "width", "height")


def hostile_rows(*, several: bool, question: str | None) -> list[Row]:
    """Make rows whose first one has failed: a reader that guesses types from it must guess right."""
    return [
        text_row(
            file_name=ref.file_name,
            file_name_b64=ref.file_name_b64,
            question=question,
            text=text,
            texts=None if not several else (text, "second") if index else (),
            status="ok" if index else "failed",
            error="" if index else "truncated",
            finish_reason="stop" if index else "",
            num_tokens=index,
            width=640 * index,
            height=480 * index,
        )
        for index, (ref, text) in enumerate(zip(HOSTILE, TEXTS, strict=True))
    ]


def by_pandas(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    import pandas

    # Unless told otherwise, pandas makes numbers and dates of texts that look like them.
    frame = pandas.read_parquet(path) if path.suffix == ".parquet" else pandas.read_json(path, lines=True, dtype=False)
    rows = frame.to_dict("records")
    return rows, {name: str(kind).replace("object", "list") for name, kind in frame.dtypes.items()}


def by_polars(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    import polars

    frame = polars.read_parquet(path) if path.suffix == ".parquet" else polars.read_ndjson(path)
    return frame.to_dicts(), {name: str(kind) for name, kind in frame.schema.items()}


def by_duckdb(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    import duckdb

    with duckdb.connect() as connection:
        answer = connection.execute(f"select * from '{path}'")
        names = [column[0] for column in answer.description]
        kinds = [str(column[1]) for column in answer.description]
        return [dict(zip(names, row, strict=True)) for row in answer.fetchall()], dict(zip(names, kinds, strict=True))


def by_pyarrow(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    import pyarrow.json
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path) if path.suffix == ".parquet" else pyarrow.json.read_json(path)
    return table.to_pylist(), {column.name: str(column.type) for column in table.schema}


def by_datasets(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    import datasets

    kind = "parquet" if path.suffix == ".parquet" else "json"
    found = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(path.parent / "cache"))
    return list(found), {name: str(feature) for name, feature in found.features.items()}


READERS: list[Callable[[Path], tuple[list[dict[str, Any]], dict[str, str]]]] = [
    by_pandas,
    by_polars,
    by_duckdb,
    by_pyarrow,
    by_datasets,
]


def kind_of(column: str, name: str) -> str:
    """Say in one word what a reader calls a type."""
    if "list" in name.lower() or name.endswith("[]"):
        return "list"
    if "int" in name.lower():
        return "int64" if "64" in name or "BIGINT" in name else name
    return "string" if any(word in name.lower() for word in ("str", "varchar")) else name


@pytest.fixture(autouse=True)
def _datasets_stays_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("several", "question"), [(False, None), (True, None), (False, "what?\u2028")])
def test_every_reader_finds_the_same_rows(
    tmp_path: Path,
    kind: str,
    reader: Callable[[Path], tuple[list[dict[str, Any]], dict[str, str]]],
    several: bool,
    question: str | None,
) -> None:
    path, rows = tmp_path / kind, hostile_rows(several=several, question=question)
    command = "caption" if question is None else "vqa"
    sink = open_output(path)
    sink.begin(SETTINGS | {"command": command, "num_captions": 2 if several else 1})
    sink.write(rows[:3])
    if kind == "rows.jsonl":
        found, _ = reader(path)
        assert plain(found) == [row.as_dict() for row in rows[:3]]
    sink.write(rows[3:])
    sink.finish(stopped=False)
    sink.close()
    found, kinds = reader(path)
    assert plain(found) == [row.as_dict() for row in rows]
    assert {column: kind_of(column, name) for column, name in kinds.items()} == {
        column: "int64" if column in INTEGERS else "list" if column == "texts" else "string"
        for column in rows[0].as_dict()
    }


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Make lists of arrays."""
    return [{**row, **({"texts": [*row["texts"]]} if "texts" in row else {})} for row in rows]
