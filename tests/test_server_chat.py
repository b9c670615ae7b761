"""Conversations with a model behind a server: what is sent, and streamed answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from blip2cap import Captioner
from blip2cap.models.server import client
from blip2cap.models.server.chat_api import NoAnswerError, StreamedText, parse_answer
from blip2cap.models.server.session import ServerSession
from blip2cap.server_options import ServerOptions
from tests.commands import draw_scenes, invoke
from tests.fault_server import KEY, MODEL, Asked, Behaviour, FaultServer, Reply, error, stream


def streaming(asked: Asked) -> Reply:
    """Answer with the number of the user's turns."""
    if asked.is_trial:
        return Reply()
    number = sum(message["role"] == "user" for message in asked.body["messages"])
    return Reply(body=stream("tu", "rn ", str(number)))


def once(fault: Reply) -> Behaviour:
    """Fail at the first attempt."""
    return lambda asked: fault if asked.attempt == 0 and not asked.is_trial else streaming(asked)


@pytest.fixture
def image(here: Path) -> Path:
    return draw_scenes(here / "pictures", 1) / "000.png"


def test_a_conversation_sends_its_earlier_turns_and_the_image_once(image: Path) -> None:
    with FaultServer(streaming) as server:
        result = invoke("chat", image, *server.options, "--system", "be brief", stdin=b"what?\nwhere?\n")
        assert result.exit_code == 0, result.stderr
        assert result.stdout == "turn 1\nturn 2\n"
        messages: list[Any] = server.asked[-1].body["messages"]
        assert server.asked[-1].image == image.read_bytes()
        assert server.asked[-1].prompt == "what?"
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in messages[2:]] == ["turn 1", "where?"]


@pytest.mark.parametrize(
    "fault", [Reply(body=stream("half a", " text"), cut=True), Reply(status=500), Reply(body=b"data: {]\n\n")]
)
def test_a_stream_that_breaks_is_asked_for_again(fault: Reply, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_PAUSES_S", (0.01, 0.02))
    with FaultServer(once(fault)) as server:
        result = invoke("chat", image, *server.options, stdin=b"what?\n")
    assert (result.exit_code, result.stdout) == (0, "turn 1\n"), result.stderr


def test_a_server_that_does_not_stream_answers_too(image: Path) -> None:
    with FaultServer() as server:
        result = invoke("chat", image, *server.options, stdin=b"what?\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("picture ")


def test_a_streamed_key_is_hidden(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    told: list[str] = []
    with FaultServer(
        lambda asked: Reply(body=stream("the key is ", KEY[:7], KEY[7:])) if not asked.is_trial else Reply()
    ) as server:
        captioner = Captioner.load(f"openai:{MODEL}", server=ServerOptions(base_url=server.url))
        text = captioner.chat(image).ask("what?", on_text=told.append)
    assert told
    assert all(KEY[:4] not in each for each in (*told, text))


def test_the_text_so_far_is_that_of_whole_events() -> None:
    body = stream("a ", "red ", "boat")
    text = StreamedText()
    texts = [text.add(body[at : at + 1]) for at in range(len(body))]
    assert list(dict.fromkeys(texts)) == ["", "a", "a red", "a red boat"]
    answer = parse_answer(body)
    assert (answer.text, answer.finish_reason, answer.num_tokens) == ("a red boat", "stop", 7)


def test_comments_and_other_fields_of_a_stream_are_no_texts() -> None:
    body = b": waiting\n\n" + stream("a boat").replace(b"data:", b"event: message\ndata:")
    assert parse_answer(body).text == StreamedText().add(body) == "a boat"


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"error": {"message": "out of memory"}}\n\n',
        b"data: [DONE]\n\n",
        b"data: nonsense\n\n",
        stream("a")[:60],
    ],
)
def test_a_stream_without_an_end_is_no_answer(body: bytes) -> None:
    with pytest.raises(NoAnswerError):
        parse_answer(body)


def test_a_server_that_fails_ends_a_conversation_with_its_words(image: Path) -> None:
    with FaultServer(lambda asked: Reply() if asked.is_trial else Reply(status=401)) as server:
        result = invoke("chat", image, *server.options, stdin=b"what?\n")
    assert result.exit_code == 4
    assert "responded with 401" in result.stderr


def test_a_server_without_streams_is_asked_for_a_whole_answer(image: Path) -> None:
    def refuse(asked: Asked) -> Reply:
        return error(400, "stream is not supported") if "stream" in asked.body else Reply()

    with FaultServer(refuse) as server:
        result = invoke("chat", image, *server.options, stdin=b"what?\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("picture ")


def test_an_answer_that_is_interrupted_ends_its_request(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(lambda asked: Reply(silent=not asked.is_trial)) as server:
        captioner = Captioner.load(f"openai:{MODEL}", server=ServerOptions(base_url=server.url))
        chat = captioner.chat(image)

        def interrupt(session: ServerSession) -> None:
            while not server.asked:
                time.sleep(0.01)
            raise KeyboardInterrupt

        monkeypatch.setattr(ServerSession, "advance", interrupt)
        tasks: list[Any] = []
        begin = ServerSession._begin

        def remember(session: ServerSession, requests: Any) -> None:
            begin(session, requests)
            tasks.append(session._running)

        monkeypatch.setattr(ServerSession, "_begin", remember)
        with pytest.raises(KeyboardInterrupt):
            chat.ask("what?")
        until = time.monotonic() + 20
        while tasks[0]:
            assert time.monotonic() < until, "the request goes on"
            time.sleep(0.01)
