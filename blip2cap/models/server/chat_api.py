"""Requests and answers of the chat API of OpenAI, as bytes.

Covered: one image and a text, after earlier turns or alone, and one text in return, whole or as a stream of events.
Not covered: tools, log probabilities.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from blip2cap.generate_options import GenerateOptions
from blip2cap.records import Turn

_REPETITION_PENALTY = 1.0
"""`frequency_penalty` of a second try of the loop guard; the API knows values from -2 to 2, and blocks no n-grams."""
_MOST_WORDS = 300
"""Longest quotation of a server in a message, in characters."""


class NoAnswerError(Exception):
    """A body that is not an answer of the API; its text says what it is instead."""


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Body(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None


class _StreamedChoice(msgspec.Struct):
    delta: _Message = msgspec.field(default_factory=_Message)
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_StreamedChoice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder, _event_decoder = msgspec.json.Decoder(_Body), msgspec.json.Decoder(_Event)
_DATA, _END = b"data:", b"[DONE]"
"""Beginning of an event in a stream, and the last one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """An answer of the server."""

    text: str
    finish_reason: str
    """Why the text ended: stop, length, content_filter or another word of the server."""
    refusal: str
    """Words of a model that refuses to answer, "" if it does not."""
    num_tokens: int
    """Number of generated tokens; 0 if the server does not count them."""
    num_prompt_tokens: int
    """Number of tokens of prompt and image; 0 if the server does not count them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """Names and fields that only some servers accept."""

    limit_name: str = "max_tokens"
    """Name of the limit on generated tokens; newer models of OpenAI want `max_completion_tokens`."""
    takes_seed: bool = True


def request_body(
    model: str,
    image: bytes,
    prompt: str,
    options: GenerateOptions,
    *,
    seed: int | None,
    dialect: Dialect,
    turns: Sequence[Turn] = (),
    streams: bool = False,
) -> bytes:
    """Return the body of a request about an image, given as a data URL; `seed` is sent if the server takes one."""
    said = [each for turn in turns for each in (("user", turn.question), ("assistant", turn.answer))]
    messages: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in (*said, ("user", prompt))]
    messages[0]["content"] = [
        {"type": "image_url", "image_url": {"url": msgspec.Raw(b'"%b"' % image)}},
        {"type": "text", "text": messages[0]["content"]},
    ]
    if options.system is not None:
        messages.insert(0, {"role": "system", "content": options.system})
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        dialect.limit_name: options.max_new_tokens,
        "temperature": options.temperature if options.sampling else 0.0,
    }
    if options.top_p is not None:
        body["top_p"] = options.top_p
    if options.no_repeat_ngram_size:  # only the loop guard asks for it
        body["frequency_penalty"] = _REPETITION_PENALTY
    if seed is not None and dialect.takes_seed:
        body["seed"] = seed
    if streams:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.encode(body)


def seed_of(seed: int, name: str, number: int) -> int:
    """Return the seed of one text, which depends on the image and the question, not on order; 31 bits."""
    digest = hashlib.sha256(f"{seed}\0{name}\0{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def parse_answer(body: bytes) -> Answer:
    """Return the answer in the body of a response, which may be a stream. Raises NoAnswerError."""
    if any(line.startswith(_DATA) for line in body.splitlines()):
        return _join_events(body)
    try:
        parsed = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NoAnswerError("its answer is not one of the chat API") from error
    if not parsed.choices:
        raise NoAnswerError("its answer has no choices")
    choice, usage = parsed.choices[0], parsed.usage or _Usage()
    return Answer(
        text=(choice.message.content or "").strip(),
        finish_reason=choice.finish_reason or "stop",
        refusal=choice.message.refusal or "",
        num_tokens=usage.completion_tokens or 0,
        num_prompt_tokens=usage.prompt_tokens or 0,
    )


class StreamedText:
    """The text in the beginning of a stream, which comes in blocks."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what came: a new answer begins."""
        self._line, self._text = b"", ""

    def add(self, block: bytes) -> str:
        """Add a block; return the text so far. What is not of the API is left to `parse_answer`."""
        lines, newline, self._line = (self._line + block).rpartition(b"\n")
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            self._text += "".join(map(_text_of, _events(lines + newline)))
        return self._text.strip()


def _join_events(body: bytes) -> Answer:
    try:
        events = list(_events(body))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NoAnswerError("its stream is not one of the chat API") from error
    if any(event.error is not None for event in events):
        raise NoAnswerError("its stream ended with an error")
    reasons = [event.choices[0].finish_reason for event in events if event.choices and event.choices[0].finish_reason]
    if not reasons:
        raise NoAnswerError("its stream ended before the text did")
    usage = next((event.usage for event in reversed(events) if event.usage), _Usage())
    return Answer(
        text="".join(map(_text_of, events)).strip(),
        finish_reason=reasons[-1],
        refusal="".join(event.choices[0].delta.refusal or "" for event in events if event.choices),
        num_tokens=usage.completion_tokens or 0,
        num_prompt_tokens=usage.prompt_tokens or 0,
    )


def _events(body: bytes) -> Iterator[_Event]:
    for line in body.splitlines():
        content = line.removeprefix(_DATA).strip()
        if line.startswith(_DATA) and content != _END:
            yield _event_decoder.decode(content)


def _text_of(event: _Event) -> str:
    return (event.choices[0].delta.content or "") if event.choices else ""


def words_of(body: bytes) -> str:
    """Return the message in the body of an error, or else its text; on one line, without an end."""
    words: Any = None
    try:
        content = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        content = None
    if isinstance(content, dict):
        error = content.get("error", content)
        words = error if isinstance(error, str) else None
        if isinstance(error, dict):
            words = next((error[name] for name in ("message", "detail", "error") if error.get(name)), None)
    text = words if isinstance(words, str) else body.decode("utf-8", "replace")
    return " ".join(text.split())


def quoted(words: str) -> str:
    """Return words of a server as a message quotes them."""
    return words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]} ..."


def error_code(body: bytes) -> str:
    """Return the field `code` of an error, "" if there is none."""
    try:
        content = msgspec.json.decode(body)
        return str(content["error"]["code"])
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return ""


def model_names(body: bytes) -> list[str]:
    """Return the names in a list of models; [] if it is none."""
    try:
        return [str(each["id"]) for each in msgspec.json.decode(body)["data"]]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError):
        return []
