"""The class whose instances are the actors, and what is asked of a node without blip2cap.

Ray sends this class to the nodes by value, as it is defined in a function: it must not need blip2cap before
`describe_node` has said whether it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def make_actor_class() -> type:
    """Return the class of actors."""

    class Actor:
        def __init__(self) -> None:
            self.maker: Any = None

        def describe_node(self) -> dict[str, str]:
            """Return the node and its versions; `error` says why there is no blip2cap."""
            import os
            import platform

            import ray

            version, error = "", ""
            try:
                import blip2cap

                version = blip2cap.__version__
            except ImportError as reason:
                error = str(reason)
            return {
                "node_id": ray.get_runtime_context().get_node_id(),
                "node": ray.util.get_node_ip_address(),
                "stderr": os.path.realpath("/proc/self/fd/2"),
                "python": f"Python {platform.python_version()}",
                "version": version,
                "error": error,
            }

        def choose_dtype(self, job: Any, checkpoint: Any) -> Any:
            """Return the dtype of `auto` here, or the error."""
            from blip2cap.errors import Blip2CapError
            from blip2cap.jobs.parts_plan import choose_dtype

            try:
                return choose_dtype(job, checkpoint)
            except Blip2CapError as error:
                return error

        def set_up(self, work: Any, num_threads: int) -> Any:
            """Load the model; return what it is, or the error."""
            from blip2cap.errors import Blip2CapError
            from blip2cap.scale.part_maker import PartMaker

            try:
                self.maker = PartMaker(work, num_threads=num_threads)
                return self.maker.line
            except Blip2CapError as error:
                return error

        def make(self, assignment: Any) -> Any:
            """Make a part; return its result and the last report, or the error."""
            from blip2cap.errors import Blip2CapError

            try:
                result = self.maker.make(assignment)
                return result, self.maker.report()
            except Blip2CapError as error:
                return error

        def report(self) -> Any:
            """Return the progress of the current part."""
            return self.maker.report()

        def stop(self) -> None:
            """Stop after the current batch."""
            self.maker.stop()

    import ray

    # Beside `make`, which takes one thread for minutes.
    for name in ("report", "stop"):
        method: Callable[..., Any] = getattr(Actor, name)
        setattr(Actor, name, ray.method(concurrency_group="aside")(method))
    return Actor
