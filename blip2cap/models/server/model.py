"""A model behind a server, with the interface of a loaded one."""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from PIL import Image

from blip2cap.decode.data_urls import DataUrlInput, data_url
from blip2cap.errors import ImageError, ServerError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.base import Checkpoint, OnText
from blip2cap.models.server.chat_api import Dialect, request_body
from blip2cap.models.server.client import Client
from blip2cap.models.server.connection import Connection
from blip2cap.models.server.session import ServerSession
from blip2cap.options import MAX_PIXELS, ModelOptions
from blip2cap.server_options import PREFIX

_KEY = "OPENAI_API_KEY"
_TRIAL = GenerateOptions(max_new_tokens=16)
"""Limit of the first request: some servers refuse a smaller one."""
_TRIAL_SIDE = 64
_UNKNOWN = {
    "min_new_tokens": "--min-new-tokens",
    "num_beams": "--num-beams",
    "top_k": "--top-k",
    "repetition_penalty": "--repetition-penalty",
    "no_repeat_ngram_size": "--no-repeat-ngram-size",
    "length_penalty": "--length-penalty",
}
"""Options of generation that the chat API does not have."""


def load(checkpoint: Checkpoint, options: ModelOptions) -> ServerModel:
    """Open the connection to a server, whose key is in OPENAI_API_KEY; nothing is sent yet."""
    return ServerModel(checkpoint, options, os.environ.get(_KEY, ""))


class ServerModel:
    """A model behind a server. Its connections are closed when nobody refers to it any more."""

    dtype = "auto"
    """The server chooses it."""
    quantize: str | None = None
    on_cpu = False
    fallback_reason = ""

    def __init__(self, checkpoint: Checkpoint, options: ModelOptions, key: str) -> None:
        self.checkpoint, self.options = checkpoint, options.server
        self.device = checkpoint.server
        self.image_input = DataUrlInput(options.max_pixels or MAX_PIXELS)
        self.name = checkpoint.name.removeprefix(PREFIX)
        """Name that the server knows."""
        self.remark = ""
        self.dialect = Dialect()
        self.connection = Connection(checkpoint.name, options.server, key)
        self.client = Client(checkpoint.name, self.connection, options.server.concurrency)
        self._tried: set[bool] = set()
        """Kinds of requests that were tried: True for sampled texts, False for greedy ones."""
        weakref.finalize(self, self.connection.close)

    def wait(self) -> None:
        """Do nothing: no device was given work ahead."""

    def check(self, options: GenerateOptions, prompts: Sequence[str] = ()) -> None:
        """Raise UsageError for options that the API does not have; then try a small picture.

        The answer decides what the server can do. Raises ServerError if there is none.
        """
        usual = GenerateOptions()
        for name, flag in _UNKNOWN.items():
            if getattr(options, name) != getattr(usual, name):
                raise UsageError(
                    f"{flag} {getattr(options, name)}: the chat API has no such option, so the server of "
                    f"{self.checkpoint.name} cannot be asked for it. Leave it out."
                )
        if options.sampling not in self._tried:
            self.connection.run(self._try(options, prompts[0] if prompts else "Describe the image."))
            self._tried.add(options.sampling)

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> ServerSession:
        """Open a session; `--concurrency` limits the requests in flight, whatever the capacity."""
        return ServerSession(self, options)

    def start_chat(self, options: GenerateOptions, *, on_text: OnText) -> ServerSession:
        """Open a session whose answers are streamed."""
        return ServerSession(self, options, on_text)

    async def _try(self, options: GenerateOptions, prompt: str) -> None:
        """Ask about a small grey picture, and learn from a refusal how this server wants to be asked."""
        image = small_image()
        options = replace(options, max_new_tokens=_TRIAL.max_new_tokens)
        while True:
            seed = options.seed if options.sampling else None
            body = request_body(self.name, image, prompt, options, seed=seed, dialect=self.dialect)
            try:
                await self.client.send(partial(bytes, body))
                return
            except ImageError as error:
                dialect = self._other_dialect(error, sampling=options.sampling)
                if dialect is None:
                    others = await self.connection.other_models()
                    raise ServerError(
                        f"--model {self.checkpoint.name} at {self.device}: cannot caption a small grey picture, the "
                        f"first request of every run: {error.detail}{others}. Nothing was written."
                    ) from error
                self.dialect = dialect

    def _other_dialect(self, error: ImageError, *, sampling: bool) -> Dialect | None:
        """Return how to ask instead, if the refusal of a request tells."""
        if error.code != "refused":
            return None
        if "max_completion_tokens" in error.detail and self.dialect.limit_name == "max_tokens":
            return replace(self.dialect, limit_name="max_completion_tokens")
        if sampling and "seed" in error.detail.lower() and self.dialect.takes_seed:
            self.remark = "the server takes no seed, so samples differ from run to run"
            return replace(self.dialect, takes_seed=False)
        return None


def small_image() -> bytes:
    """Return the picture of the first request, a data URL."""
    file = io.BytesIO()
    Image.new("RGB", (_TRIAL_SIDE, _TRIAL_SIDE), "grey").save(file, "PNG")
    return data_url(file.getvalue(), "PNG")
