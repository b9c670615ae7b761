"""The types of columns: their values in Python, in lines of JSON and in Arrow."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


class ColumnType(Protocol):
    """Type of the values in a column, which are never null."""

    @property
    def empty(self) -> Any:
        """Value in a failed row."""

    def check(self, value: Any) -> None:
        """Raise TypeError or ValueError for a value that is not of this type."""

    def to_json(self, value: Any) -> Any:
        """Return the value as `json.dumps` takes it."""

    def from_json(self, value: Any) -> Any:
        """Return the value that `to_json` wrote. Raises TypeError or ValueError."""

    @property
    def num_bytes(self) -> int:
        """Typical size of a value in memory, to choose how many rows are held at once."""

    def arrow(self) -> pa.DataType:
        """Return the type of the column in Arrow."""

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:
        """Return values as an array of that type."""


@dataclass(frozen=True, slots=True)
class _Scalar:
    """A value that JSON and Arrow hold as it is."""

    python: type
    arrow_name: str
    empty: Any

    def check(self, value: Any) -> None:
        if type(value) is not self.python:
            raise TypeError(f"expected {self.arrow_name}, got {value!r}")
        if isinstance(value, str):
            value.encode()  # a lone surrogate would make a writer fail halfway
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")

    def to_json(self, value: Any) -> Any:
        return value

    def from_json(self, value: Any) -> Any:
        value = float(value) if self.python is float and type(value) is int else value
        self.check(value)
        return value

    def arrow(self) -> pa.DataType:
        import pyarrow as pa

        return pa.type_for_alias(self.arrow_name)

    @property
    def num_bytes(self) -> int:
        return 50 if self.python is str else 8

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:
        import pyarrow as pa

        return pa.array(values, self.arrow())


@dataclass(frozen=True, slots=True)
class _List:
    """A list, in JSON and in Arrow; its elements are those of a subclass."""

    num_bytes: int
    empty: Sequence[Any] = ()

    def check(self, value: Any) -> None:
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"expected a list, got {value!r}")
        for each in value:
            self._check_element(each)

    def to_json(self, value: Any) -> Any:
        return list(value)

    def from_json(self, value: Any) -> Any:
        self.check(value)
        return tuple(value)

    def arrow(self) -> pa.DataType:
        import pyarrow as pa

        return pa.list_(pa.field("element", self._arrow_element(), nullable=False))

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:
        import pyarrow as pa

        return pa.array(values, self.arrow())

    def _check_element(self, value: Any) -> None:
        raise NotImplementedError

    def _arrow_element(self) -> pa.DataType:
        raise NotImplementedError


class _Strings(_List):
    """A list of strings."""

    __slots__ = ()

    def _check_element(self, value: Any) -> None:
        STRING.check(value)

    def _arrow_element(self) -> pa.DataType:
        return STRING.arrow()


class _Regions(_List):
    """A list of parts of an image: `label`, and `box`, left, top, right and bottom in pixels."""

    __slots__ = ()

    def _check_element(self, value: Any) -> None:
        if not isinstance(value, dict) or set(value) != {"label", "box"}:
            raise ValueError(f"expected a label and a box, got {value!r}")
        STRING.check(value["label"])
        if not isinstance(value["box"], (list, tuple)) or len(value["box"]) != 4:
            raise ValueError(f"expected a box of four numbers, got {value['box']!r}")
        for number in value["box"]:
            FLOAT.check(number)

    def _arrow_element(self) -> pa.DataType:
        import pyarrow as pa

        box = pa.list_(pa.field("element", FLOAT.arrow(), nullable=False))
        return pa.struct([pa.field("label", STRING.arrow(), nullable=False), pa.field("box", box, nullable=False)])


@dataclass(frozen=True, slots=True)
class Vector:
    """A numpy array of a fixed shape: base64 of little-endian numbers in C order in JSON, fixed-size lists in Arrow."""

    shape: tuple[int, ...]
    """One number for a vector; two for several: [number of vectors, length]."""
    dtype: Literal["float16", "float32"]

    @property
    def empty(self) -> np.ndarray:
        """Zeros."""
        import numpy as np

        return np.zeros(self.shape, self.dtype)

    @property
    def num_bytes(self) -> int:
        """Size of the numbers."""
        return math.prod(self.shape) * (2 if self.dtype == "float16" else 4)

    def check(self, value: Any) -> None:
        """Compare dtype and shape, and look for NaN and infinity."""
        import numpy as np

        if getattr(value, "shape", None) != self.shape or str(value.dtype) != self.dtype:
            raise TypeError(f"an array of {list(self.shape)} numbers in {self.dtype} was expected")
        if not np.isfinite(value).all():
            raise ValueError("an array with numbers that are not finite")

    def to_json(self, value: Any) -> str:
        """Encode the numbers."""
        return base64.b64encode(value.astype(value.dtype.newbyteorder("<")).tobytes()).decode("ascii")

    def from_json(self, value: Any) -> np.ndarray:
        """Decode the numbers, from base64 or from an array or a list (as Arrow returns them)."""
        import numpy as np

        if isinstance(value, str):
            data = base64.b64decode(value, validate=True)
            numbers = np.frombuffer(data, np.dtype(self.dtype).newbyteorder("<")).astype(self.dtype)
            value = numbers.reshape(self.shape)
        vector = np.asarray(value, self.dtype)
        self.check(vector)
        return vector

    def arrow(self) -> pa.DataType:
        """Return lists of lists, as many as there are dimensions; the innermost hold numbers."""
        import pyarrow as pa

        kind = getattr(pa, self.dtype)()
        for length in reversed(self.shape):
            kind = pa.list_(pa.field("element", kind, nullable=False), length)
        return kind

    def to_arrow(self, values: Sequence[Any]) -> pa.Array:
        """Copy the numbers of all values at once."""
        import numpy as np
        import pyarrow as pa

        kinds = [self.arrow()]
        for _ in self.shape[1:]:
            kinds.append(kinds[-1].value_type)
        array = pa.array(np.stack(values).reshape(-1) if values else np.empty(0, self.dtype))
        for kind in reversed(kinds):
            array = pa.FixedSizeListArray.from_arrays(array, type=kind)
        return array


def python_values(array: pa.Array) -> Sequence[Any]:
    """Return the values of a column: numpy arrays of fixed-size lists of numbers, Python objects of all others."""
    import pyarrow as pa

    shape, numbers = [], array
    while pa.types.is_fixed_size_list(numbers.type) and not numbers.null_count:
        shape.append(numbers.type.list_size)
        numbers = numbers.flatten()
    if not shape or not pa.types.is_floating(numbers.type) or numbers.null_count:
        values: list[Any] = array.to_pylist()
        return values
    return list(numbers.to_numpy(zero_copy_only=False).reshape(len(array), *shape))


STRING = _Scalar(str, "string", "")
INTEGER = _Scalar(int, "int64", 0)
FLOAT = _Scalar(float, "float64", 0.0)
STRINGS = _Strings(num_bytes=200)
REGIONS = _Regions(num_bytes=1000)
