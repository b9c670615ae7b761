"""`blip2cap chat`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from blip2cap.cli.options import ReportOptions, option, with_options
from blip2cap.cli.terminal import clean, count, say, write_out
from blip2cap.errors import Blip2CapError, ImageError, InputError, OutputError, UsageError
from blip2cap.generate_options import CHAT_NEW_TOKENS, GenerateOptions
from blip2cap.options import DecodeOptions, ModelOptions
from blip2cap.server_options import ServerOptions

if TYPE_CHECKING:
    from blip2cap.chat import Chat

_PROMPT = "> "
_COMMANDS = """/image FILE  talk about another image, from the beginning
/reset       forget the earlier turns
/save FILE   write the turns to a new .jsonl file
/help        show this
/quit        end, as Ctrl-D does; Ctrl-C ends an answer"""


@with_options(
    without=[
        *("random_weights", "num_captions", "verbose", "dry_run", "json", "threads"),
        *("concurrency", "price_input", "price_output"),
    ],
    max_new_tokens=CHAT_NEW_TOKENS,
)
def chat(
    model: ModelOptions,
    server: ServerOptions,
    decode: DecodeOptions,
    generate: GenerateOptions,
    report: ReportOptions,
    image: Annotated[str, option("IMAGE", "Image file to talk about.", panel="Input")],
) -> None:
    """Talk about one image, question by question.

    The model sees the earlier questions and their answers, as far as it has learned to use them.
    In a terminal, answers appear as they are generated, and /help lists what else can be typed. From a pipe, each line
    is a question, and its answer is one line of standard output.
    """
    from blip2cap.chat import Chat
    from blip2cap.models.checkpoint import find
    from blip2cap.models.registry import FAMILIES, load

    def tell(line: str) -> None:
        if not report.quiet:
            say(clean(line))

    model = replace(model, server=server)
    checkpoint = find(model, say=tell, quiet=report.quiet)
    family = FAMILIES[checkpoint.family]
    family.check_task("chat", checkpoint)
    family.check_system(generate, checkpoint)
    tell(checkpoint.announcement)
    loaded = load(checkpoint, model)
    try:
        talk = Chat(loaded, image, options=generate, decode=decode)
    except ImageError as error:
        raise InputError(str(error)) from error
    if sys.stdin is not None and sys.stdin.isatty():
        _in_terminal(talk, tell)
    else:
        _from_pipe(talk, tell)


def _from_pipe(chat: Chat, tell: Callable[[str], None]) -> None:
    """Answer each line of standard input by one line of standard output. Raises Blip2CapError, which names the line."""
    for number, line in enumerate(sys.stdin or (), start=1):
        try:
            if not line.startswith("/"):
                write_out(" ".join(clean(chat.ask(line.strip())).split("\n")) + "\n")
            elif not _command(chat, line.strip(), tell):
                return
        except ImageError as error:
            raise InputError(f"line {number}: {error}") from error
        except UsageError as error:
            raise type(error)(f"line {number}: {error.message}") from error


def _in_terminal(chat: Chat, tell: Callable[[str], None]) -> None:
    """Read questions until the end of input; errors are shown, and the conversation goes on."""
    tell(f"{chat.image_name}: ask a question, or type /help")
    for line in _lines():
        try:
            if line.startswith("/"):
                if not _command(chat, line, tell):
                    return
            elif line:
                _answer(chat, line)
        except KeyboardInterrupt:
            write_out("\n")
            tell("stopped; the question is not part of the conversation")
        except Blip2CapError as error:
            say(clean(str(error) if isinstance(error, ImageError) else error.message))  # an ImageError names its image


def _lines() -> Iterator[str]:
    """Yield what is typed, line by line, with editing and history where the system has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  input() uses it
    while True:
        try:
            yield input(_PROMPT).strip()
        except EOFError:
            write_out("\n")
            return


def _answer(chat: Chat, question: str) -> None:
    """Print an answer as it grows."""
    shown = ""

    def grow(text: str) -> None:
        nonlocal shown
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # a character of which only the first bytes are generated
        if text.startswith(shown):
            write_out(_printable(text[len(shown) :]))
            shown = text

    text = chat.ask(question, on_text=grow)
    whole = _printable(text[len(shown) :] if text.startswith(shown) else f"\n{text}")
    write_out(f"{whole}\n")


def _printable(text: str) -> str:
    return "\n".join(clean(line) for line in text.split("\n"))


def _command(chat: Chat, line: str, tell: Callable[[str], None]) -> bool:
    """Run a line that begins with a slash; return False to end. Raises UsageError for an unknown one."""
    name, _, value = line.partition(" ")
    value = value.strip()
    match name:
        case "/image" if value:
            chat.show(value)
            tell(f"{value}: a new conversation")
        case "/reset":
            chat.reset()
            tell("the earlier turns are forgotten")
        case "/save" if value:
            _save(chat, value)
            tell(f"{value}: {count(len(chat.turns), 'turn')}")
        case "/help":
            say(_COMMANDS)
        case "/quit":
            return False
        case "/image" | "/save":
            raise UsageError(f"{name}: expected a file name after it.")
        case _:
            raise UsageError(f"{name}: unknown. Expected /image FILE, /reset, /save FILE, /help or /quit.")
    return True


def _save(chat: Chat, path: str) -> None:
    rows = [
        {"file_name": chat.image_name, "turn": number, "question": turn.question, "answer": turn.answer}
        for number, turn in enumerate(chat.turns, start=1)
    ]
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except FileExistsError as error:
        raise UsageError(f"/save {path}: exists. Use another name.") from error
    except OSError as error:
        raise OutputError(f"/save {path}: cannot be written: {error.strerror}.") from error
