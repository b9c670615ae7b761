"""The makers of a run's rows: an engine in this process, or a pool of workers. Both take requests and return rows."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from typing import Any, Protocol

from blip2cap.engine.read_ahead import ReadAhead, SharedTrace
from blip2cap.engine.run import Engine, RowMaker, RunStats
from blip2cap.errors import UsageError
from blip2cap.jobs.context import Context
from blip2cap.models.base import dtype_name
from blip2cap.rows import Row
from blip2cap.tasks.base import Request
from blip2cap.workers.devices import choose_devices, environment_of, num_cores
from blip2cap.workers.feed import Feed
from blip2cap.workers.messages import CheckpointLoader, Setup
from blip2cap.workers.pool import WorkerPool


class Maker(RowMaker, Protocol):
    """Makes the rows of a run; to be closed. Requests may be read ahead before the model is loaded."""

    def load(self) -> str:
        """Load the model, or wait until a worker has; return its dtype. Raises Blip2CapError."""

    def close(self) -> None:
        """End the processes."""


def make_maker(context: Context, dtype: str, is_large: Callable[[], bool]) -> Maker:
    """Choose between this process and workers; `is_large` says whether there are many images."""
    job = context.job
    if context.model is not None:
        if job.workers.num_workers not in (None, 1) or job.workers.gpus:
            raise UsageError("--workers and a loaded model exclude each other: each process loads its own.")
        return LocalMaker(context, dtype)
    if context.checkpoint.server:
        return LocalMaker(context, dtype)
    devices = choose_devices(job.workers, job.model, context.checkpoint, is_large)
    if len(devices) == 1:
        return LocalMaker(replace(context, job=replace(job, model=replace(job.model, device=devices[0]))), dtype)
    return PoolMaker(context, dtype, devices)


class LocalMaker:
    """The engine in this process."""

    def __init__(self, context: Context, dtype: str) -> None:
        self._context, self._dtype = context, dtype
        self._size = context.job.batch.images()
        self._engine: Engine | None = None

    def load(self) -> str:
        """Load the model; return its dtype. Imports torch."""
        context, job = self._context, self._context.job
        model = context.load_model(self._dtype)
        self._engine = Engine(
            model=model,
            task=job.task,
            decode=job.decode,
            batch=job.batch,
            on_failure=context.listener.failure,
            say=context.listener.say,
        )
        return dtype_name(model.dtype)

    def read_ahead(self, requests: Iterable[Request], trace: SharedTrace | None = None) -> ReadAhead:
        """Start to read and decode images in threads."""
        job = self._context.job
        return ReadAhead(requests, job.decode, self._context.image_input, self._size, trace)

    def row_batches(
        self, images: Any, stats: RunStats, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[list[Row]]:
        """Yield rows in the order of the requests."""
        assert self._engine is not None
        return self._engine.row_batches(images, stats, stopped)

    def close(self) -> None:
        """Do nothing: no process was started."""


class PoolMaker:
    """Workers, each with its model."""

    def __init__(self, context: Context, dtype: str, devices: tuple[str, ...]) -> None:
        job = context.job
        num_threads = max(1, num_cores() // len(devices))
        self._context, self._devices = context, devices
        self._pool = WorkerPool(
            [
                Setup(
                    loader=CheckpointLoader(checkpoint=context.checkpoint, options=job.model),
                    device=device,
                    dtype=dtype,
                    task=job.task,
                    decode=job.decode.on_cores(num_threads),
                    batch=job.batch,
                )
                for device in devices
            ],
            environment=environment_of(num_threads),
            on_failure=context.listener.failure,
            say=context.listener.say,
        )

    def load(self) -> str:
        """Wait until the first worker has loaded the model; return its dtype."""
        ready = self._pool.wait()
        self._context.say_model(ready.dtype, _named(self._devices), ready.fallback_reason, ready.remark)
        return ready.dtype

    def read_ahead(self, requests: Iterable[Request], trace: SharedTrace | None = None) -> Feed:
        """Start to read requests."""
        return self._pool.read_ahead(requests, trace)

    def row_batches(
        self, images: Any, stats: RunStats, stopped: Callable[[], bool] = lambda: False
    ) -> Generator[list[Row]]:
        """Yield rows in the order of the requests."""
        return self._pool.row_batches(images, stats, stopped)

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


def _named(devices: tuple[str, ...]) -> str:
    """Return the devices of workers as a message names them."""
    return f"{len(devices)} workers ({', '.join(dict.fromkeys(devices))})"
