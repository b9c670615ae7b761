"""One run of a job on a Ray cluster, from options to an outcome. Prints nothing.

Input: a job whose output is a folder of parts. Does: finds or makes the plan here, lets actors make the missing parts.
Output: an outcome, as of any run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import ModuleType

from blip2cap import urls
from blip2cap.errors import ClusterError, UsageError
from blip2cap.jobs.context import Context, open_source
from blip2cap.jobs.job import Job, Listener, Outcome
from blip2cap.jobs.parts import finish_parts
from blip2cap.jobs.parts_plan import PartsWork, prepare_parts
from blip2cap.options import Kind
from blip2cap.records import ImageRef
from blip2cap.scale.connection import connected
from blip2cap.scale.events import Work
from blip2cap.scale.options import LOCAL, RayOptions
from blip2cap.scale.pool import RayPool
from blip2cap.scale.scheduler import Result, Scheduler, part_names
from blip2cap.source.inputs import Source


def check_job(job: Job, options: RayOptions) -> None:
    """Raise UsageError for options that make no sense on a cluster."""
    if job.kind is not Kind.PARTS:
        raise UsageError(
            f"--ray and --out {job.output.out} exclude each other: many machines write a folder of parts. Let --out "
            "end in /, on a disk that all nodes see or in a bucket: captions/ or s3://BUCKET/captions/."
        )
    model = job.model
    if model.on_server:
        raise UsageError(
            f"--ray and --model {model.name} exclude each other: the server computes. Leave --ray out; several "
            "machines can share a folder of parts with --shard."
        )
    if model.device_map is not None:
        raise UsageError(
            f"--ray and --device-map {model.device_map} exclude each other: an actor has one GPU. Use a smaller "
            "--dtype or --quantize, or leave --ray out."
        )
    if model.device.startswith("cuda:"):
        raise UsageError(f"--ray and --device {model.device} exclude each other: Ray chooses the GPU. Leave it out.")
    if job.workers.num_workers not in (None, 1) or job.workers.gpus:
        raise UsageError("--ray and --workers or --devices exclude each other: an actor is one process. Leave one out.")
    if model.device == "cuda" and options.cpus is not None:
        raise UsageError("--ray-cpus and --device cuda exclude each other: such actors have no GPU. Leave one out.")


def run_on_ray(
    job: Job, options: RayOptions, *, listener: Listener, stopped: Callable[[], bool] = lambda: False
) -> Outcome:
    """Run a job on a cluster until it is complete, or until `stopped` returns True. Raises Blip2CapError.

    Connects to the cluster only if a part is missing.
    """
    check_job(job, options)
    source = open_source(job)
    with ExitStack() as stack:
        pools: list[RayPool] = []

        def pool() -> RayPool:
            if not pools:
                pools.append(stack.enter_context(_pool(job, options, listener)))
            return pools[0]

        def automatic_dtype(context: Context) -> str:
            return pool().choose_dtype(_on_actors(context.job, pool().needs, "auto"), context.checkpoint)

        parts = prepare_parts(job, source, listener=listener, stopped=stopped, automatic_dtype=automatic_dtype)
        if not parts.todo:
            return finish_parts(parts, None)
        context = parts.context
        work = Work(
            job=_on_actors(context.job, pool().needs, parts.dtype),
            checkpoint=context.checkpoint,
            folder=os.getcwd() if _may_be_relative(source) else None,
            plan_id=parts.plan.id,
            sample=_sample(parts),
        )
        pool().set_work(work)
        listener.say(f"loading {context.checkpoint.name} ...")
        result = Scheduler(pool(), parts, stall_s=options.stall_s).run()
    return finish_parts(
        parts, result.stats, num_found=result.num_found, num_lost=result.num_lost, error=_given_up(result)
    )


@contextmanager
def _pool(job: Job, options: RayOptions, listener: Listener) -> Iterator[RayPool]:
    """Yield the actors of a cluster; end them, and disconnect. Raises ClusterError if there is no room for one."""
    assert options.address is not None
    listener.say(f"connecting to Ray ({options.address}) ...")
    with connected(options.address) as ray:
        pool = RayPool(ray, _needs(ray, job, options), grows=options.address != LOCAL, stall_s=options.stall_s)
        listener.say(f"Ray {ray.__version__}: {pool.describe()}")
        pool.check(listener.say)
        try:
            yield pool
        finally:
            pool.close()


def _needs(ray: ModuleType, job: Job, options: RayOptions) -> dict[str, float]:
    """Return the resources of an actor: one GPU, or CPUs."""
    num_gpus = ray.cluster_resources().get("GPU", 0.0)
    if options.cpus is None and job.model.device != "cpu" and num_gpus >= 1:
        return {"GPU": 1.0, "CPU": 1.0}
    if job.model.device == "cuda":
        raise ClusterError("--device cuda: no node of the cluster has a GPU. Leave --device out, or add such nodes.")
    if options.cpus is not None:
        return {"CPU": float(options.cpus)}
    cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return {"CPU": min((num for num in cpus if num >= 1), default=1.0)}


def _on_actors(job: Job, needs: Mapping[str, float], dtype: str) -> Job:
    """Return the job as actors with these resources get it; they have another current folder."""
    out = job.output.out if urls.scheme(job.output.out) else f"{os.path.abspath(job.output.out)}/"
    name = os.path.abspath(folder) if os.path.isdir(folder := os.path.expanduser(job.model.name)) else job.model.name
    device = job.model.device if "GPU" in needs else "cpu"  # others may see a GPU that is not theirs
    return replace(
        job,
        output=replace(job.output, out=out),
        model=replace(job.model, name=name, dtype=dtype, device=device),
    )


def _sample(parts: PartsWork) -> ImageRef | None:
    """Return an image of the first missing part whose folder every node must see; None if all are URLs."""
    return next((ref for ref in parts.plan.refs(parts.todo[0]) if not urls.scheme(ref.path)), None)


def _may_be_relative(source: Source) -> bool:
    """Return whether paths in the plan may start from the current folder; those in lists may, and are not read here."""
    return bool(source.options.files_from) or any(
        not os.path.isabs(given) and not urls.scheme(given) for given in source.inputs
    )


def _given_up(result: Result) -> ClusterError | None:
    if not result.given_up:
        return None
    last = list(result.given_up.values())[-1]
    return ClusterError(
        f"given up after repeated deaths of their actors: {part_names(result.given_up)}. All other parts are finished. "
        f"The last death: {last} Fix the cause, then run the same command again: it makes just these parts."
    )
