"""A GPU without a GPU: `cuda` tensors that have shapes, dtypes and devices but no numbers; the CPU's are real.

Covered: tensors on several devices, shapes and dtypes at real sizes, the number of operations, reads that make the host
wait. Not covered: numbers, kernels, time. What is read is 1 or True: ids and lengths that exist, beams that continue.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from blip2cap.models.base import Checkpoint
from blip2cap.models.blip2 import load as load_module
from blip2cap.models.blip2.random_weights import build_empty
from blip2cap.models.checkpoint import find
from blip2cap.models.matching import load as matching_load_module
from blip2cap.models.registry import load
from blip2cap.options import ModelOptions
from tests.checkpoints import make_tokenizer

aten = torch.ops.aten
GPU = torch.device("cuda:0")
READS = frozenset({"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "unique2", "masked_select"})
"""Operations whose result the host needs: it waits until the device has done everything before them."""
_COPIES = frozenset({"_to_copy", "copy_"})
_NO_WORK = frozenset({"device", "dropout", "empty", "empty_like", "empty_strided", "new_empty", "detach", "detach_"})


class GpuTensor(torch.Tensor):
    """A tensor that says it is on the GPU."""

    meta: torch.Tensor
    """Its shape and dtype."""

    @staticmethod
    def __new__(cls, meta: torch.Tensor) -> GpuTensor:
        strides, offset = meta.stride(), meta.storage_offset()
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, meta.shape, strides=strides, storage_offset=offset, dtype=meta.dtype, device=GPU
        )
        tensor.meta = meta
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} outside of fake_gpu()")


class Gpu(TorchDispatchMode):
    """Computes shapes; counts operations and reads. An operation on tensors of several devices is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []
        """Operations that start work on the device: all but views."""
        self.reads: list[str] = []
        """Operations whose result the host waits for."""
        self.num_uploads = 0
        """Copies to the device that the host waits for, and so for all work before them."""
        self.num_waits = 0
        """Waits for an event, as before reading what was copied without waiting."""

    def forget(self) -> None:
        """Count from zero."""
        self.operations, self.reads, self.num_uploads, self.num_waits = [], [], 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.overloadpacket.__name__, dict(kwargs or {})
        tensors = list(_tensors([*args, *kwargs.values()]))
        known = {id(tensor.meta): tensor for tensor in tensors if isinstance(tensor, GpuTensor)}
        if not known and torch.device(kwargs.get("device") or "cpu").type != "cuda":
            return func(*args, **kwargs)
        if _may_be_view(func):
            with self:
                return func.decompose(*args, **kwargs)
        if name not in _COPIES:
            devices = {str(tensor.device) for tensor in tensors if tensor.ndim}
            assert len(devices) <= 1, f"{name} of tensors on {' and '.join(sorted(devices))}"
        if name in ("item", "_local_scalar_dense", "is_nonzero", "equal"):
            self.reads.append(name)
            return args[0].dtype == torch.bool or 1
        if name in _COPIES:
            target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or GPU)
            waits = not (kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,)))
            if target.type == "cpu":
                self.reads += [name] * waits
                ones = torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
                return ones if name == "_to_copy" else args[0].copy_(ones)
            if any(tensor.device.type == "cpu" and tensor.ndim for tensor in tensors):
                self.num_uploads += waits
        elif name in READS:
            self.reads.append(name)
        if not _is_view(func) and name not in _NO_WORK:
            self.operations.append(name)
        if name == "scaled_dot_product_attention":
            return GpuTensor(_attention(args[0].meta, args[2].meta))
        if name == "layer_norm":  # takes torch 10 ms
            return GpuTensor(torch.empty_like(args[0].meta))
        result = func(*_to_meta(args), **{key: _to_meta(value) for key, value in kwargs.items()})
        if isinstance(result, torch.Tensor):
            return known[id(result)] if id(result) in known else GpuTensor(result)
        return type(result)(map(_to_gpu, result)) if isinstance(result, (list, tuple)) else result


def _attention(query_NHTK: torch.Tensor, value_NHSK: torch.Tensor) -> torch.Tensor:
    """Return what the fused kernels give: heads beside each other in memory, so that joining them is a view."""
    rows, heads, length, _ = query_NHTK.shape
    return query_NHTK.new_empty((rows, length, heads, value_NHSK.shape[-1])).transpose(1, 2)


@functools.cache
def _is_view(func: Any) -> bool:
    return any(value.alias_info and not value.alias_info.is_write for value in func._schema.returns)


@functools.cache
def _may_be_view(func: Any) -> bool:
    """Return True for operations such as `reshape` and `to`, which are views or copies."""
    return _is_view(func) and func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _to_meta(value: Any) -> Any:
    if isinstance(value, GpuTensor):
        return value.meta
    if isinstance(value, (list, tuple)):
        return type(value)(map(_to_meta, value))
    if isinstance(value, torch.device):
        return torch.device("meta")
    return value.to("meta") if isinstance(value, torch.Tensor) and value.device.type == "cpu" else value


def _to_gpu(value: Any) -> Any:
    return GpuTensor(value) if isinstance(value, torch.Tensor) else value


class _Guardless(TorchFunctionMode):
    """Runs as plain operations what asks a CPU build of torch for CUDA before it is dispatched; pins no memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func.__name__, dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        if name == "pin_memory":
            return args[0]
        if name in ("tensor", "as_tensor") and "device" in kwargs:
            device = kwargs.pop("device")
            return _to(func(*args, **kwargs), device)
        if name == "tolist" and isinstance(args[0], GpuTensor):
            return _to(args[0], "cpu").tolist()
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if "not linked with support for cuda" not in str(error):
                raise
        x = args[0]
        if name == "__getitem__":
            x, tensors = _slice(x, args[1])
            return aten.index(x, tensors) if any(at is not None for at in tensors) else x
        if name == "__setitem__":
            return _assign(*_slice(x, args[1]), args[2])
        if name == "to":
            return _to(x, *args[1:], **kwargs)
        return getattr(aten, {"__invert__": "bitwise_not", "contiguous": "clone"}.get(name, name))(*args, **kwargs)


def _slice(x: torch.Tensor, index: Any) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """Apply the parts of an index that make a view; return the view and the tensors that index it."""
    dim, tensors = 0, list[torch.Tensor | None]()
    for part in index if isinstance(index, tuple) else (index,):
        if part is Ellipsis:  # all that follows counts from the end
            assert not any(tensors), "an index tensor before an ellipsis"
            num_after = len(index) - index.index(...) - 1 - index.count(None)
            tensors += [None] * (x.ndim - num_after - dim)
            dim = x.ndim - num_after
            continue
        if isinstance(part, int):
            x = aten.select(x, dim, part)
            continue
        if part is None:
            x = aten.unsqueeze(x, dim)
        elif isinstance(part, slice):
            x = aten.slice(x, dim, part.start, part.stop, part.step or 1)
        elif isinstance(part, list):
            part = _to(torch.tensor(part, dtype=None if part else torch.long), GPU)
        tensors.append(part if isinstance(part, torch.Tensor) else None)
        dim += 1
    return x, tensors


def _assign(x: torch.Tensor, tensors: list[torch.Tensor | None], value: Any) -> None:
    if any(at is not None for at in tensors):
        aten.index_put_(x, tensors, value if isinstance(value, torch.Tensor) else torch.full((), value, dtype=x.dtype))
    elif isinstance(value, torch.Tensor):
        aten.copy_(x, value)
    else:
        aten.fill_(x, value)


def _to(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    if dtype in (None, x.dtype) and device in (None, x.device):
        return x
    return aten._to_copy(x, dtype=dtype or x.dtype, device=device or x.device, non_blocking=non_blocking)


class _Nothing:
    """A stream, an event, a graph or a context that does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


class _Event(_Nothing):
    def __init__(self, gpu: Gpu) -> None:
        super().__init__()
        self.gpu = gpu

    def synchronize(self) -> None:
        self.gpu.num_waits += 1


_CUDA: dict[str, Any] = {
    **dict.fromkeys(("device", "stream", "Stream", "CUDAGraph", "graph"), _Nothing),
    **dict.fromkeys(("current_stream", "default_stream", "graph_pool_handle"), _Nothing),
    "_lazy_init": lambda: None,
    "synchronize": lambda *args: None,
    "empty_cache": lambda: None,
    "device_count": lambda: 1,
    "get_device_capability": lambda *args: (9, 0),
    "is_bf16_supported": lambda **options: True,
    "mem_get_info": lambda *args: (140 * 10**9, 141 * 10**9),
    "memory_reserved": lambda *args: 0,
    "memory_allocated": lambda *args: 0,
}


@contextmanager
def fake_gpu() -> Iterator[Gpu]:
    """Let there be a GPU; give what it was asked to do."""
    gpu = Gpu()
    with (
        patch.multiple(torch.cuda, **_CUDA, Event=lambda *args, **options: _Event(gpu)),
        torch.inference_mode(),
        _Guardless(),
        gpu,
    ):
        yield gpu


def load_fake(name: str, *, num_layers: int | None = None, **options: Any) -> Any:
    """Load a model in its real widths, with fake weights, and `num_layers` layers in each part; inside `fake_gpu`."""
    model_options = ModelOptions(name=name, device="cuda", random_weights=True, **options)
    checkpoint = find(model_options)
    if num_layers is not None:
        config = {key: dict(part) if isinstance(part, dict) else part for key, part in checkpoint.config.items()}
        for part in {"vision_config", "qformer_config", "text_config"} & {*config}:
            config[part] |= {"num_hidden_layers": num_layers}
            if config[part].get("model_type") == "t5":
                config[part] |= {"num_layers": num_layers, "num_decoder_layers": num_layers}
        checkpoint = replace(checkpoint, config=config)
    with (
        patch.object(torch.nn.Module, "to", lambda module, *place: module),  # everything is made where it belongs
        patch.multiple(load_module, build=_build, tokenizer_of=lambda *which: make_tokenizer(ends=False)),
        patch.multiple(matching_load_module, build=_build, tokenizer_of=lambda *which: make_tokenizer(ends=True)),
    ):
        return load(checkpoint, model_options)


def _build(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Any:
    """Build the network with fake weights."""
    with _disable_current_modes():  # transformers reads a few numbers
        network = build_empty(checkpoint)
    made: dict[int, torch.nn.Parameter] = {}
    for module in network.modules():
        for name, empty in module._parameters.items():
            if empty is not None and id(empty) not in made:
                weight = torch.empty(empty.shape, dtype=dtype, device=device)
                made[id(empty)] = torch.nn.Parameter(weight, requires_grad=False)
            module._parameters[name] = None if empty is None else made[id(empty)]
        for name, buffer in module._buffers.items():
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    if checkpoint.family != "matching":
        network.generation_config.eos_token_id = network.language_model.generation_config.eos_token_id = None
    return network.eval()
