"""`embed`: vectors of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from blip2cap.column_types import Vector
from blip2cap.errors import ImageError, UsageError
from blip2cap.models.base import MATCHING_MODELS, Checkpoint, Family, Session
from blip2cap.records import ImageRef
from blip2cap.rows import Column, Row, Schema, make_schema
from blip2cap.tasks.base import SameLabels
from blip2cap.tasks.match import not_finite

if TYPE_CHECKING:
    import numpy as np

WHAT = ("pooled", "queries", "qformer")
"""Names of the vectors of an image."""
Precision = Literal["float16", "float32"]
PRECISIONS: tuple[Precision, ...] = ("float16", "float32")
"""Types of stored numbers."""


@lru_cache
def embedding_schema(shape: tuple[int, ...], precision: Precision) -> Schema:
    """Return the columns of vectors of this shape."""
    return make_schema(Column("embedding", Vector(shape, precision)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Embed(SameLabels):
    """Vectors of images.

    pooled: one vector, the mean of `queries`, normalised. queries: one vector for each query of the Q-Former, in the
    space that texts are in too. qformer: the output of the Q-Former, which language models read.
    """

    name: ClassVar[str] = "embed"

    what: str = "pooled"
    dtype: Precision = "float32"
    """Type of the stored numbers, not that of the computation."""
    raw: bool = False
    """Vectors as they come out of the model, not of length 1."""
    shape: tuple[int, ...] = ()
    """Shape of the vectors of an image, known after `for_checkpoint`."""

    def __post_init__(self) -> None:
        if self.what not in WHAT:
            raise UsageError(f"--what {self.what}: must be one of {', '.join(WHAT)}.")
        if self.dtype not in PRECISIONS:
            raise UsageError(f"--precision {self.dtype}: must be one of {', '.join(PRECISIONS)}.")

    @property
    def labels(self) -> Sequence[str | None]:
        """One row for each image."""
        return (None,)

    @property
    def schema(self) -> Schema:
        """Columns of the rows; before `for_checkpoint`, without the shape of the vectors."""
        return embedding_schema(self.shape, self.dtype)

    @property
    def deterministic(self) -> bool:
        """Equal images have equal vectors."""
        return True

    def settings(self) -> dict[str, Any]:
        """Return everything that changes a number."""
        return {"what": self.what, "precision": self.dtype, "raw": self.raw}

    def model_settings(self) -> dict[str, Any]:
        """Return the shape, if it is known."""
        return {"shape": list(self.shape)} if self.shape else {}

    def for_checkpoint(self, checkpoint: Checkpoint, family: Family) -> Self:
        """Return the task with the shape of the vectors. Raises UsageError if the family does not have them."""
        family.check_task(self.name, checkpoint)
        if self.what != "qformer" and "match" not in family.tasks:
            raise UsageError(
                f"--model {checkpoint.name}: a model of the family {family.name} has no vectors in a space with texts. "
                f"Use --what qformer with it, or, for --what {self.what}, {MATCHING_MODELS}."
            )
        return replace(self, shape=_shape(self.what, checkpoint.config))

    def check(self, model: Any) -> None:
        """Compare the shape with that of the loaded model, which must not differ."""
        assert model.embedding_shape(self.what) == self.shape, (model.embedding_shape(self.what), self.shape)

    def start(self, model: Any, *, capacity: int | None) -> Session:
        """Open a session that computes vectors."""
        session: Session = model.start_embed(self.what, normalised=not self.raw, capacity=capacity)
        return session

    def prompt(self, ref: ImageRef, label: str | None) -> str:
        """Return "": there is nothing to ask."""
        return ""

    def finish(self, result: np.ndarray) -> np.ndarray | ImageError:
        """Convert the numbers to the stored type. Those that are not finite become an ImageError."""
        import numpy as np

        with np.errstate(over="ignore"):
            vectors = result.astype(self.dtype)
        return vectors if np.isfinite(vectors).all() else not_finite()

    def row(self, ref: ImageRef, label: str | None, result: np.ndarray | ImageError, *, width: int, height: int) -> Row:
        """Make the row of an image; a failed one has vectors of zeros."""
        failed = isinstance(result, ImageError)
        values = {} if isinstance(result, ImageError) else {"embedding": result}
        return self.schema.row(
            file_name=ref.file_name,
            file_name_b64=ref.file_name_b64,
            **values,
            status="failed" if failed else "ok",
            error=result.code if isinstance(result, ImageError) else "",
            width=width,
            height=height,
        )


def _shape(what: str, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of the vectors, from the content of a config.json; defaults are those of transformers."""
    size, num_queries = int(config.get("image_text_hidden_size", 256)), int(config.get("num_query_tokens", 32))
    if what == "pooled":
        return (size,)
    if what == "queries":
        return num_queries, size
    return num_queries, int((config.get("qformer_config") or {}).get("hidden_size", 768))


def schema_of(settings: Mapping[str, Any]) -> Schema:
    """Return the columns of vectors made with these settings."""
    return embedding_schema(tuple(settings["shape"]), settings["precision"])


def recognise(columns: Mapping[str, Any]) -> Schema | None:
    """Return the columns of vectors if there is one of arrays, as Parquet has them; base64 says no shape."""
    value: Any = columns.get("embedding")
    return embedding_schema(value.shape, str(value.dtype)) if hasattr(value, "shape") else None
