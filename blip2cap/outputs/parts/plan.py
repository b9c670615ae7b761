"""The plan of a folder of parts: the inputs of each part, the labels of their rows, and the settings.

It is one Parquet file (without that suffix) that the first process writes: a row group for each part, the settings in
its metadata. Inputs are listed, and read back, one part at a time. Labels that depend on the image, such as captions,
are listed beside it; those of all images are settings.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from blip2cap.errors import OutputError, OutputRefusedError, UsageError
from blip2cap.outputs.manifest import Manifest
from blip2cap.outputs.parts.store import OURS, Store, temporary
from blip2cap.records import ImageRef
from blip2cap.tasks.base import WITHOUT_CAPTION

PART_SIZE = 10_000
NAME = f"{OURS}/plan"
_KEY = "blip2cap"
_REMEDY = "Use another --out."
_TYPES = {"str": pa.binary(), "int": pa.int64()}
"""Types of the columns. Text is stored as bytes: paths may be invalid UTF-8."""
_FIELDS = {one.name: _TYPES.get(str(one.type).removesuffix(" | None")) for one in fields(ImageRef)}
_SCHEMA = pa.schema([(name, type_) for name, type_ in _FIELDS.items() if type_ is not None])
_LABELS = pa.field("labels", pa.list_(pa.field("element", pa.string(), nullable=False)))


@dataclass(frozen=True, kw_only=True, slots=True)
class PartsPlan:
    """The inputs and settings of a folder of parts."""

    manifest: Manifest
    """Settings of all parts."""
    id: str
    """Random id, which tells the parts of this plan from those of another with the same settings."""
    skipped: Mapping[str, int]
    """Number of entries that the listing skipped, by reason."""
    store: Store
    """Folder or bucket of the plan."""
    part_size: int
    """Number of inputs in every part but the last."""
    metadata: Any
    """pq.FileMetaData of its file, with the position of each row group."""

    @property
    def num_images(self) -> int:
        """Number of inputs."""
        return int(self.metadata.num_rows)

    @property
    def num_parts(self) -> int:
        """Number of parts."""
        return int(self.metadata.num_row_groups)

    @property
    def labels(self) -> Sequence[str | None] | None:
        """Labels of the rows of every image: the questions, or (None,); None if they depend on the image."""
        if self._lists_labels:
            return None
        return self.manifest.settings.get(labels_setting(self.manifest.label)) or (None,)

    @property
    def _lists_labels(self) -> bool:
        return str(self.metadata.schema.column(self.metadata.num_columns - 1).path).startswith(f"{_LABELS.name}.")

    @property
    def num_rows(self) -> int:
        """Number of rows of all inputs."""
        return sum(map(self.num_rows_of, range(self.num_parts)))

    def num_refs(self, index: int) -> int:
        """Return the number of inputs of a part."""
        return int(self.metadata.row_group(index).num_rows)

    def num_rows_of(self, index: int) -> int:
        """Return the number of rows of a part."""
        if self.labels is not None:
            return self.num_refs(index) * len(self.labels)
        group = self.metadata.row_group(index)
        return int(group.column(group.num_columns - 1).num_values)  # every planned image has a label

    def refs(self, index: int) -> list[ImageRef]:
        """Read the inputs of a part, in their order."""
        return list(self.labelled_refs(index))

    def labelled_refs(self, index: int) -> dict[ImageRef, Sequence[str | None]]:
        """Read the inputs of a part, in their order, with the labels of their rows."""
        try:
            with self.store.open(NAME) as file:
                parquet = pq.ParquetFile(file, metadata=self.metadata, page_checksum_verification=True)
                rows = parquet.read_row_group(index).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise OutputError(f"{NAME} cannot be read: {error}. Run the same command again.") from error
        labels = self.labels
        return {
            ImageRef(**{name: _text(row[name]) for name in _SCHEMA.names}): row["labels"] if labels is None else labels
            for row in rows
        }

    def check(self, settings: Mapping[str, Any], output: str) -> None:
        """Raise OutputRefusedError if `settings` differ from those of the plan; the message names each difference."""
        made = self.manifest.settings
        if "input_root" in made and "input_root" not in settings:
            # Inputs are absolute, and must be those of the plan. Older releases recorded a root all the same.
            settings = {**settings, "input_root": made["input_root"]}
        self.manifest.check(settings, output, _REMEDY)


def labels_setting(label: str) -> str:
    """Return the name of the setting that lists the labels of all images: the plural of their column."""
    return f"{label or 'question'}s"


def part_name(index: int) -> str:
    """Return the name of the object of a part."""
    return f"part-{index:05}.parquet"


def read_plan(store: Store) -> PartsPlan | None:
    """Read the plan; None if there is none.

    Raises OutputRefusedError if it is damaged, or if a folder without plan contains anything else.
    """
    try:
        file = _open(store)
        if file is None:
            return None
        with file:
            metadata = pq.read_metadata(file)
        content = json.loads(metadata.metadata[_KEY.encode()])
        plan = PartsPlan(
            manifest=Manifest(**content["manifest"]),
            id=content["id"],
            skipped=content["skipped"],
            store=store,
            part_size=content.get("part_size") or metadata.row_group(0).num_rows,  # missing in old plans
            metadata=metadata,
        )
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise OutputRefusedError(f"{store.url}{NAME} is damaged ({error}). {_REMEDY}") from error
    return plan


def _open(store: Store) -> BinaryIO | None:
    others: list[str] = []
    for _ in range(2):  # twice, as another process may write the plan, and a part, between the two looks
        with contextlib.suppress(FileNotFoundError):
            return store.open(NAME)
        others = sorted(store.names() - {OURS})
        if not others:
            return None
    raise OutputRefusedError(
        f"{store.url} is not a folder of parts: it has no plan but contains {others[0]}. Use a new or empty folder, or "
        "another --out."
    )


def make_plan(
    store: Store,
    refs: Iterable[ImageRef],
    settings: Mapping[str, Any],
    *,
    part_size: int = PART_SIZE,
    skipped: Counter[str] | None = None,
    labels_of: Callable[[ImageRef], Sequence[str | None]] | None = None,
) -> PartsPlan | None:
    """List all inputs and write the plan; if another process was faster, return its plan.

    Returns None if there is no input. `skipped` are the counts that `refs` updates while it is iterated. With
    `labels_of`, the labels of each image are listed; images without any are skipped and counted.
    """
    skipped = Counter[str]() if skipped is None else skipped
    try:
        with temporary(store.scratch, "plan-") as path:
            if not _list_inputs(path, refs, settings, part_size, skipped, labels_of):
                return None
            if store.create_from(NAME, path) and store.create_from(NAME, path):
                raise OutputError(
                    f"{store.url} cannot be used: it overwrites an object that exists when asked not to, so several "
                    "processes would overwrite each other's parts. Use another --out: S3, Google Cloud Storage or a "
                    "folder."
                )
    except OSError as error:
        raise OutputError(
            f"{store.scratch} cannot be written: {error.strerror}. Free disk space, then run the same command again."
        ) from error
    return read_plan(store)


def _list_inputs(
    path: Path,
    refs: Iterable[ImageRef],
    settings: Mapping[str, Any],
    part_size: int,
    skipped: Counter[str],
    labels_of: Callable[[ImageRef], Sequence[str | None]] | None,
) -> int:
    """Write all inputs, a row group for each part, and the settings; return the number of inputs."""
    rows: Iterator[dict[str, object]] = map(_row, refs)
    schema = _SCHEMA
    if labels_of is not None:
        rows, schema = _labelled(refs, labels_of, skipped), _SCHEMA.append(_LABELS)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        num_images = 0
        while part := list(itertools.islice(rows, part_size)):
            writer.write_table(pa.Table.from_pylist(part, schema=schema), row_group_size=part_size)
            num_images += len(part)
        content = {
            "manifest": Manifest(settings=dict(settings)).as_dict(),
            "id": secrets.token_hex(8),
            "skipped": dict(skipped),
            "part_size": part_size,
        }
        writer.add_key_value_metadata({_KEY: json.dumps(content)})
    return num_images


def _labelled(
    refs: Iterable[ImageRef], labels_of: Callable[[ImageRef], Sequence[str | None]], skipped: Counter[str]
) -> Iterator[dict[str, object]]:
    """Yield the images that have labels, with these; count the others."""
    for ref in refs:
        if labels := labels_of(ref):
            yield _row(ref) | {_LABELS.name: list(labels)}
        else:
            skipped[WITHOUT_CAPTION] += 1


def check_ref(ref: ImageRef) -> ImageRef:
    """Return an input that another process can read too. Raises UsageError if its bytes can be read only once."""
    if any(getattr(ref, name) for name, type_ in _FIELDS.items() if type_ is None):
        raise UsageError(
            f"{ref.file_name}: comes from a stream, which another process cannot read again. A folder of parts takes "
            "images that can be read at any time: files, or members of uncompressed archives. Use a .jsonl --out."
        )
    return ref


def _row(ref: ImageRef) -> dict[str, object]:
    check_ref(ref)
    return {name: _bytes(getattr(ref, name)) for name in _SCHEMA.names}


def _bytes(value: object) -> object:
    return os.fsencode(value) if isinstance(value, str) else value


def _text(value: object) -> Any:
    return os.fsdecode(value) if isinstance(value, bytes) else value
