"""Options of a model behind a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from urllib.parse import urlsplit

from blip2cap.errors import UsageError
from blip2cap.flags import check_limits, flag

PREFIX = "openai:"
"""Start of the name of a model behind a server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """A server that speaks the chat API of OpenAI. Its key is in the variable OPENAI_API_KEY, in no option."""

    PANEL: ClassVar = "Server"

    base_url: str | None = flag(
        None,
        "--base-url URL",
        "Address of the server of --model openai:NAME, e.g. http://localhost:8000/v1. OPENAI_API_KEY holds its key.",
    )
    concurrency: int = flag(
        32,
        "--concurrency N",
        "Most requests in flight at once. Fewer while the server is slower with more, or asks to wait.",
        least=1,
    )
    request_timeout_s: float = flag(
        120.0, "--request-timeout S", "Seconds to wait for one answer of the server, to its last byte."
    )
    price_input: float | None = flag(
        None, "--price-input N", "Price of a million tokens of prompts and images: the summary shows the cost."
    )
    price_output: float | None = flag(None, "--price-output N", "Price of a million generated tokens.")

    def __post_init__(self) -> None:
        check_limits(self)
        if self.base_url is not None:
            object.__setattr__(self, "base_url", _checked(self.base_url))
        if not 0 < self.request_timeout_s < float("inf"):
            raise UsageError(f"--request-timeout {self.request_timeout_s:g}: must be a number of seconds above 0.")
        if (self.price_input is None) != (self.price_output is None):
            raise UsageError("--price-input and --price-output belong together: give both, or leave both out.")
        for name, price in (("--price-input", self.price_input), ("--price-output", self.price_output)):
            if price is not None and not 0 <= price < float("inf"):
                raise UsageError(f"{name} {price:g}: must be 0 or more.")

    def cost(self, num_tokens_in: float, num_tokens_out: float) -> float | None:
        """Return the price of tokens; None without prices."""
        if self.price_input is None or self.price_output is None:
            return None
        return (num_tokens_in * self.price_input + num_tokens_out * self.price_output) / 1e6


def _checked(url: str) -> str:
    """Return an address without a slash at its end. Raises UsageError, which does not repeat what may be a secret."""
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError("--base-url: not an address. Expected one like http://localhost:8000/v1.")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            f"--base-url {parts.scheme}://{parts.hostname}...: has a user, a password, a query or a fragment. Expected "
            "an address like http://localhost:8000/v1; a key belongs in the variable OPENAI_API_KEY."
        )
    return url.rstrip("/?#")
