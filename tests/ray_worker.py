"""What tests put in place in the worker processes of Ray: a stand-in for the model, decoders that crash, old packages."""

from __future__ import annotations

import json
import sys
from typing import Any


def settings(*, stub: dict[str, Any] | None = None, misbehave: bool = False, version: str | None = None) -> str:
    """Return the value of RAY_TEST_WORKER; `version` is that of blip2cap, "" for none."""
    return json.dumps({"stub": stub, "misbehave": misbehave, "version": version})


def prepare(given: str) -> None:
    """Change this process as asked."""
    asked = json.loads(given)

    if asked["version"] == "":
        vars(sys)["modules"]["blip2cap"] = None  # an import of it fails
        return
    if asked["version"]:
        import blip2cap

        blip2cap.__version__ = asked["version"]
    if asked["stub"] is not None:
        from tests.zygote import Stub, put_in_place_of_the_model

        sys.modules["blip2cap.models.blip2.load"] = put_in_place_of_the_model(Stub(**asked["stub"]))
    if asked["misbehave"]:
        from blip2cap.decode import isolate
        from tests import crashing

        crashing.misbehave()
        isolate.PROGRAM = crashing.PROGRAM
