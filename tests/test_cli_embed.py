"""Vectors of images and texts, and every reader of the Parquet file that is installed here."""

from __future__ import annotations

import base64
import fcntl
import json
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas
import polars
import pyarrow.parquet as pq
import pytest
import torch

from blip2cap.jobs import texts
from blip2cap.models import registry
from blip2cap.models.base import Checkpoint
from blip2cap.options import ModelOptions
from blip2cap.outputs.open import open_rows
from tests.commands import invoke, read_rows

Model = tuple[str, str]
RED = np.array([2, 1, 1, 2, 1, 1], np.float32)
"""Vector of a red image, not normalised."""
SHAPES = {"pooled": (6,), "queries": (3, 6), "qformer": (3, 4)}


@pytest.mark.parametrize("what", [*SHAPES])
@pytest.mark.parametrize("precision", ["float16", "float32"])
def test_each_image_has_a_row_with_its_vectors(
    what: str, precision: str, images: Path, here: Path, model: Model
) -> None:
    result = invoke("embed", images, *model, "--what", what, "--precision", precision)
    assert (result.exit_code, result.stdout) == (0, "")
    table = pq.read_table(here / "embeddings.parquet")
    assert table["file_name"].to_pylist() == ["a.png", "b.png", "sub/c.png"]
    assert table["status"].to_pylist() == ["ok"] * 3
    first = np.array(table["embedding"][0].as_py())
    assert first.shape == SHAPES[what]
    assert np.allclose(np.linalg.norm(first, axis=-1), 1, atol=1e-3)
    assert {str(row["embedding"].dtype) for row in open_rows("embeddings.parquet")} == {precision}


def test_raw_vectors_are_not_normalised(images: Path, here: Path, model: Model) -> None:
    invoke("embed", images / "a.png", *model, "--raw")
    (row,) = open_rows("embeddings.parquet")
    assert row["embedding"].tolist() == RED.tolist()


def test_lines_hold_base64_and_a_stream_too(images: Path, here: Path, model: Model) -> None:
    assert invoke("embed", images, *model, "-o", "embeddings.jsonl", "--raw").exit_code == 0
    rows = read_rows(here / "embeddings.jsonl")
    assert np.frombuffer(base64.b64decode(rows[0]["embedding"]), "<f4").tolist() == RED.tolist()
    stream = invoke("embed", images, *model, "-o", "-", "--raw", "--quiet")
    assert read_rows(stream.stdout_bytes) == rows


@pytest.mark.parametrize("out", ["embeddings.parquet", "embeddings.jsonl", "embeddings/"])
def test_a_second_run_adds_new_images_only(out: str, images: Path, here: Path, model: Model) -> None:
    (images / "bad.png").write_bytes(b"no image")
    command = ("embed", images, *model, "-o", out, "--what", "queries", "--precision", "float16", "--json")
    assert invoke(*command).exit_code == 3
    (images / "bad.png").unlink()
    (images / "b.png").rename(images / "bad.png")
    again = invoke(*command, "--retry-failed")
    assert json.loads(again.stdout)["rows_ok"] == 1
    rows = {row.file_name: row for row in open_rows(out)}
    assert [row.status for row in rows.values()] == ["ok"] * len(rows)
    assert np.allclose(rows["bad.png"]["embedding"], rows["b.png"]["embedding"])


def test_another_kind_of_vector_is_refused_for_an_output(images: Path, here: Path, model: Model) -> None:
    invoke("embed", images, *model)
    result = invoke("embed", images, *model, "--what", "queries")
    assert result.exit_code == 5
    assert '--what was "pooled", now "queries"' in result.stderr


def test_show_and_status_and_export_take_vectors(images: Path, here: Path, model: Model) -> None:
    invoke("embed", images, *model, "--what", "queries")
    shown = invoke("show", "embeddings.parquet")
    assert (shown.exit_code, "a.png" in shown.stdout, "[3, 6]" in shown.stdout) == (0, True, True), shown.output
    assert "3 ok, 0 failed" in invoke("status", "embeddings.parquet").stdout
    for to in ("jsonl", "csv", "parquet"):
        assert invoke("export", "embeddings.parquet", "--to", to, "-o", f"out.{to}").exit_code == 0
    (first, *_) = open_rows("out.parquet")
    (same, *_) = open_rows("embeddings.parquet")
    assert np.array_equal(first["embedding"], same["embedding"])
    refused = invoke("export", "embeddings.parquet", "--to", "coco", "-o", "coco.json")
    assert (refused.exit_code, "have no text" in refused.stderr) == (2, True), refused.stderr


@pytest.fixture
def expected(images: Path, here: Path, model: Model) -> dict[str, Any]:
    """Write the same vectors in all shapes and precisions; return the array of each file."""
    arrays = {}
    for what in SHAPES:
        for precision in ("float16", "float32"):
            out = f"{what}-{precision}.parquet"
            assert invoke("embed", images, *model, "--what", what, "--precision", precision, "-o", out).exit_code == 0
            arrays[out] = np.stack([row["embedding"] for row in open_rows(out)])
    return arrays


def read_with_pyarrow_and_numpy(path: str) -> Any:
    column = pq.read_table(path)["embedding"].combine_chunks()
    shape = [len(column)]
    while hasattr(column.type, "list_size"):
        shape.append(column.type.list_size)
        column = column.flatten()
    return column.to_numpy(zero_copy_only=False).reshape(shape)


def read_with_torch(path: str) -> Any:
    return torch.from_numpy(polars.read_parquet(path)["embedding"].to_numpy().copy()).numpy()


def _sql(query: str) -> list[Any]:
    return duckdb.connect().execute(query).fetchall()


def read_with_duckdb(path: str) -> Any:
    return np.array([row[0] for row in _sql(f"select embedding from '{path}'")])


def read_with_polars(path: str) -> Any:
    return polars.read_parquet(path)["embedding"].to_numpy()


def read_with_pandas(path: str) -> Any:
    return np.stack(
        [np.stack(value) if value.dtype == object else value for value in pandas.read_parquet(path).embedding]
    )


def read_with_datasets(path: str) -> Any:
    return np.array(datasets.Dataset.from_parquet(path, cache_dir="cache")["embedding"])


@pytest.mark.parametrize(
    "read",
    [
        *(read_with_pyarrow_and_numpy, read_with_torch, read_with_duckdb, read_with_polars, read_with_pandas),
        read_with_datasets,
    ],
)
def test_every_reader_finds_the_same_numbers(read: Any, expected: dict[str, Any]) -> None:
    for path, array in expected.items():
        found = read(path)
        assert found.shape == array.shape
        assert np.array_equal(found.astype(array.dtype), array), path


def test_duckdb_finds_the_nearest_image(expected: dict[str, Any]) -> None:
    query = """
        select file_name from 'pooled-float32.parquet'
        order by array_cosine_similarity(embedding::float[6], [2, 1, 1, 2, 1, 1]::float[6]) desc limit 1
    """
    assert _sql(query) == [("a.png",)]


def test_faiss_finds_the_nearest_image(expected: dict[str, Any]) -> None:
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatIP(6)
    index.add(polars.read_parquet("pooled-float32.parquet")["embedding"].to_numpy())
    _, found = index.search(expected["pooled-float32.parquet"][1:2], 1)
    assert found.tolist() == [[1]]


def test_lancedb_takes_all_tables_and_finds_the_nearest_image(here: Path, expected: dict[str, Any]) -> None:
    lancedb = pytest.importorskip("lancedb")
    database = lancedb.connect(here / "lance")
    for path in expected:
        assert database.create_table(Path(path).stem, pq.read_table(path)).count_rows() == 3
    query = expected["pooled-float32.parquet"][2]
    (nearest,) = database["pooled-float32"].search(query, vector_column_name="embedding").limit(1).to_list()
    assert nearest["file_name"] == "sub/c.png"


@pytest.mark.parametrize("out", ["texts.parquet", "texts.jsonl", "-"])
def test_texts_are_embedded_instead_of_images(out: str, here: Path, model: Model) -> None:
    (here / "lines.txt").write_text("red\n\nblue\n")
    result = invoke("embed", "--texts", "lines.txt", *model, "--raw", "-o", out)
    assert result.exit_code == 0, result.output
    assert "2 texts" in result.stderr
    if out == "texts.parquet":
        table = pq.read_table(here / out)
        assert table.column_names == ["text", "embedding"]
        found = {row["text"]: row["embedding"] for row in table.to_pylist()}
    else:
        rows = read_rows(result.stdout_bytes if out == "-" else here / out)
        found = {row["text"]: np.frombuffer(base64.b64decode(row["embedding"]), "<f4").tolist() for row in rows}
    assert [*found] == ["red", "blue"]
    assert found["red"] == RED.tolist()
    if out == "-":
        (here / "lines.jsonl").write_bytes(result.stdout_bytes)
    shown = invoke("show", "lines.jsonl" if out == "-" else out)
    assert shown.exit_code == 2, shown.output
    assert ":1: a text and its vector, as `embed --texts` writes them" in shown.stderr


def test_texts_need_no_vision_encoder(here: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(checkpoint: Checkpoint, options: ModelOptions) -> Any:
        loaded.append(options.texts_only)
        return registry.load(checkpoint, options)

    monkeypatch.setattr(texts, "load", load)
    (here / "lines.txt").write_text("red\n")
    assert invoke("embed", "--texts", "lines.txt", *model).exit_code == 0
    assert loaded == [True]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_vectors_of_texts_leave_nothing_of_an_output_that_they_replace(
    suffix: str, images: Path, here: Path, model: Model
) -> None:
    (here / "lines.txt").write_text("red\n")
    out = here / f"x.{suffix}"
    command = ("embed", "--texts", "lines.txt", *model, "-o", out)
    assert invoke("embed", images, *model, "-o", out).exit_code == 0
    if suffix == "parquet":
        out.rename(here / "y.parquet")
        (here / "x.parquet.jsonl").touch()
    refused = invoke(*command)
    assert (refused.exit_code, "exists, and" in refused.stderr) == (5, True), refused.stderr
    result = invoke(*command, "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in here.glob("x.*")] == [out.name]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_vectors_of_texts_wait_for_no_other_run(suffix: str, here: Path, model: Model) -> None:
    (here / "lines.txt").write_text("red\n")
    locked = here / ("x.jsonl" if suffix == "jsonl" else "x.parquet.jsonl")
    with open(locked, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = invoke("embed", "--texts", "lines.txt", *model, "-o", f"x.{suffix}", "--overwrite")
    assert (result.exit_code, "another blip2cap run" in result.stderr) == (5, True), result.stderr
    assert [path.name for path in here.glob("x.*")] == [locked.name]


def test_vectors_of_texts_replace_a_file_only_if_asked_to(here: Path, model: Model) -> None:
    (here / "lines.txt").write_text("red\n")
    command = ("embed", "--texts", "lines.txt", *model)
    assert invoke(*command, "--dry-run").exit_code == 0
    assert not (here / "embeddings.parquet").exists()
    assert invoke(*command).exit_code == 0
    refused = invoke(*command)
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (5, True)
    assert invoke(*command, "--overwrite").exit_code == 0


WRONG = {
    "no INPUT given": [],
    "--texts and INPUT exclude each other": ["images", "--texts", "lines.txt"],
    "--limit has no effect with --texts. Leave one out.": ["--texts", "lines.txt", "--limit", "2"],
    "--include has no effect with --texts. Leave one out.": ["--texts", "lines.txt", "--include", "*.png"],
    "--what all: must be one of pooled, queries, qformer": ["images", "--what", "all"],
    "--precision float64: must be one of float16, float32": ["images", "--precision", "float64"],
    "a text has one vector": ["--texts", "lines.txt", "--what", "queries"],
    "vectors of texts are one file": ["--texts", "lines.txt", "-o", "folder/"],
    "--texts none.txt: cannot be read": ["--texts", "none.txt"],
    "too long": ["--texts", "long.txt"],
}


@pytest.mark.parametrize("message", [*WRONG])
def test_wrong_options_are_refused(message: str, images: Path, here: Path, model: Model) -> None:
    (here / "lines.txt").write_text("red\n")
    (here / "long.txt").write_text("red " * 20)
    result = invoke("embed", *WRONG[message], *model)
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_a_captioner_embeds_for_its_language_model_only(images: Path, here: Path) -> None:
    refused = invoke("embed", images, "--model", "tiny")
    assert (refused.exit_code, "--what qformer" in refused.stderr, "tiny-itm" in refused.stderr) == (2, True, True)
    texts = here / "lines.txt"
    texts.write_text("red\n")
    assert "has no vectors of texts" in invoke("embed", "--texts", texts, "--model", "tiny").stderr
    result = invoke("embed", images, "--model", "tiny", "--what", "qformer")
    assert result.exit_code == 0, result.output
    assert {row["embedding"].ndim for row in open_rows("embeddings.parquet")} == {2}
