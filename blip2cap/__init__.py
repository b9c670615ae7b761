"""Batch captions and answers for images with BLIP-2.

>>> from blip2cap import Captioner, Matcher
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip2cap.captioner import Captioner as Captioner
    from blip2cap.image_index import Index as Index
    from blip2cap.matcher import Matcher as Matcher

__version__ = "0.1.0"
__all__ = ["Captioner", "Index", "Matcher", "__version__"]


def __getattr__(name: str) -> Any:
    """Import torch only when an interface is asked for: the command line starts without it."""
    if name == "Captioner":
        from blip2cap.captioner import Captioner

        return Captioner
    if name == "Index":
        from blip2cap.image_index import Index

        return Index
    if name == "Matcher":
        from blip2cap.matcher import Matcher

        return Matcher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
