"""Changes that tests make to worker processes of Ray: a stand-in for the model, bad decoders, missing things."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any


def settings(**asked: Any) -> str:
    """Return the value of RAY_TEST_WORKER: the changes that `prepare` makes."""
    return json.dumps(asked)


def prepare(given: str) -> None:
    """Change this process as asked."""
    asked = json.loads(given)
    if asked.get("version") == "":
        vars(sys)["modules"]["blip2cap"] = None  # an import of it fails
        return
    if asked.get("version"):
        import blip2cap

        blip2cap.__version__ = asked["version"]
    if asked.get("own_cache"):
        os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(dir=os.environ["RAY_TMPDIR"])
    if asked.get("stub") is not None:
        from tests.zygote import Stub, put_in_place_of_the_model

        sys.modules["blip2cap.models.blip2.load"] = put_in_place_of_the_model(Stub(**asked["stub"]))
    if asked.get("misbehave"):
        from blip2cap.decode import isolate
        from tests import crashing

        crashing.misbehave()
        isolate.PROGRAM = crashing.PROGRAM
    if asked.get("hidden"):
        _hide(asked["hidden"])
    if "deadly_part" in asked or asked.get("raises"):
        _spoil(asked.get("deadly_part", -1))


def _hide(what: str) -> None:
    """Hide what other machines do not see."""
    from blip2cap.errors import ModelError
    from blip2cap.scale import part_maker

    elsewhere: dict[str, Any] = vars(part_maker)
    if what == "store":
        open_store = elsewhere["open_store"]
        elsewhere["open_store"] = lambda out: open_store("/no/such/folder/")
    elif what == "model":

        def find(options: Any, **settings: Any) -> Any:
            raise ModelError(f"--model {options.name}: no such folder.")

        elsewhere["find"] = find
    else:

        def stat(path: str) -> None:
            raise FileNotFoundError(2, "No such file or directory", path)

        elsewhere["os"] = type("os", (), {"path": os.path, "stat": staticmethod(stat), "chdir": staticmethod(os.chdir)})


def _spoil(deadly_part: int) -> None:
    """End the process over one part; raise an error over any other one if there is none."""
    from blip2cap.scale import part_maker

    names: dict[str, Any] = vars(part_maker)
    run_part = names["run_part"]

    def spoilt(engine: Any, store: Any, plan: Any, index: int, **settings: Any) -> Any:
        if deadly_part < 0:
            raise ZeroDivisionError("a bug for this test")
        if index == deadly_part:
            os.write(2, b"the last words of this actor\n")
            os._exit(1)
        return run_part(engine, store, plan, index, **settings)

    names["run_part"] = spoilt
