"""The ways in which a request can fail that does not end the run at once."""

from __future__ import annotations


class RequestError(Exception):
    """A request without an answer; its text says why, in the words of the server where there are any."""


class BusyError(RequestError):
    """The server asks for fewer requests: 429 or 503."""

    def __init__(self, words: str, pause_s: float) -> None:
        super().__init__(words)
        self.pause_s = pause_s
        """Seconds that it asks to wait; 0 if it does not say."""


class LostError(RequestError):
    """No connection can be made."""


class BrokenError(RequestError):
    """The server failed at this request: 5xx, an answer that ends too early, or one that is not of the API."""


class SlowError(RequestError):
    """No complete answer within the time limit."""


class RejectedError(RequestError):
    """The server does not accept this request: 4xx."""
