"""`caption` with a server that fails, stalls and lies, and runs that end early."""

from __future__ import annotations

import base64
import itertools
import signal
import threading
import time
from collections import Counter
from functools import partial

import pytest

from blip2cap.captioner import Captioner
from blip2cap.errors import ServerError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.checkpoint import find
from blip2cap.models.server import client
from blip2cap.models.server.model import load
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from blip2cap.server_options import ServerOptions
from tests.commands import finish, invoke, num_lines, read_rows, start, wait_until
from tests.fault_server import KEY, MODEL, Asked, Behaviour, Reply, answer, error, good, text_of
from tests.server_runs import expected, has_rows, injected, noise, once, texts

FAULTS = {
    "500": error(500),
    "cut": Reply(cut=True),
    "dropped": Reply(drop=True),
    "wrong JSON": Reply(body={"choices": "none"}),
    "no JSON": Reply(body=b"<html>"),
    "no choices": Reply(body={"choices": []}),
    "an error with 200": Reply(body={"error": {"message": "no memory"}}),
    "429": error(429, "slow down"),
    "429 with 0": error(429, "slow down", Retry_After="0"),
    "503": error(503, "loading"),
    "stall": Reply(silent=True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_no_row_if_the_next_attempt_works(fault, serve, pictures, here):
    server = serve(once(FAULTS[fault]))
    result = invoke("caption", pictures, *server.options, "--request-timeout", 0.5)
    assert result.exit_code == 0, result.stderr
    assert texts(here / "captions.jsonl") == expected(pictures)
    assert len(server.asked) > 12


@pytest.mark.parametrize(
    ("fault", "code", "num_attempts"),
    [
        (error(500, "CUDA error"), "no_answer", 3),
        (Reply(cut=True), "no_answer", 3),
        (Reply(body={"choices": "none"}), "no_answer", 3),
        (Reply(silent=True), "timeout", 3),
        (error(400, "image too small"), "refused", 1),
        (error(413), "refused", 1),
        (Reply(body=answer("", "length")), "no_answer", 1),
        (Reply(body=answer(None, "length", reasoning_content="hm")), "no_answer", 1),
        (Reply(body=answer(None, "content_filter")), "refused", 1),
        (Reply(body=answer(None, "stop", refusal="I cannot.")), "refused", 1),
    ],
)
def test_an_image_that_always_fails_costs_its_row_and_no_other(fault, code, num_attempts, serve, pictures, here):
    bad = (pictures / "005.png").read_bytes()
    server = serve(lambda asked: fault if asked.image == bad else Reply())
    result = invoke("caption", pictures, *server.options, "--request-timeout", 0.3)
    assert result.exit_code == 3, result.stderr
    rows = read_rows(here / "captions.jsonl")
    assert [row["error"] for row in rows] == [""] * 5 + [code] + [""] * 6
    assert [row["text"] for row in rows if not row["error"]] == [
        text for path, text in zip(sorted(pictures.iterdir()), expected(pictures), strict=True) if path.stem != "005"
    ]
    assert sum(asked.image == bad for asked in server.asked) == num_attempts
    server.behaviour = good
    assert invoke("caption", pictures, *server.options, "--retry-only", code).exit_code == 0
    assert Counter(texts(here / "captions.jsonl")) == Counter(expected(pictures))


def test_an_empty_text_that_the_model_ended_itself_is_a_text(serve, pictures, here):
    server = serve(lambda asked: Reply(body=answer("")))
    assert invoke("caption", pictures, *server.options).exit_code == 0
    assert texts(here / "captions.jsonl") == [""] * 12


def test_many_images_in_a_row_that_fail_end_the_run_with_the_words_of_the_server_and_the_rows_are_safe(serve, here):
    folder = noise(here / "pictures", 60)
    server = serve(lambda asked: error(500, "the GPU has gone") if asked.number >= 30 else Reply())
    result = invoke("caption", folder, *server.options, "--concurrency", 2)
    assert result.exit_code == 4
    assert '10 different images in a row failed; the last: the server responded with 500: "the GPU has gone"' in (
        result.stderr
    )
    rows = read_rows(here / "captions.jsonl")
    assert 0 < len(rows) < 60
    server.behaviour = good
    result = invoke("caption", folder, *server.options, "--retry-failed")
    assert result.exit_code == 0, result.stderr
    assert Counter(texts(here / "captions.jsonl")) == Counter(expected(folder))


def test_a_model_that_only_thinks_ends_the_run(serve, here):
    server = serve(lambda asked: Reply(body=answer("", "length")))
    result = invoke("caption", noise(here / "pictures", 200), *server.options)
    assert result.exit_code == 4
    assert "10 different images in a row failed; the last: 7 tokens and no text" in result.stderr


def test_nothing_is_sent_after_the_run_has_ended(serve, here):
    server = serve(lambda asked: error(400), delay_s=0.01)
    options = ModelOptions(name=f"openai:{MODEL}", server=ServerOptions(base_url=server.url, concurrency=2))
    model = load(find(options), options)
    session = model.start_texts(GenerateOptions(), capacity=None)
    images = [f"data:image/png;base64,{number:04}".encode() for number in range(60)]
    session.add(session.encode(images), [Prompt(image=number, text="x", name="") for number in range(60)])
    with pytest.raises(ServerError, match="10 different images in a row failed"):
        while True:
            session.advance()
    time.sleep(0.3)
    assert len(server.asked) < 30


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error(401, "Incorrect API key"), ['401: "Incorrect API key"', "OPENAI_API_KEY"]),
        (error(403, "not for you"), ['403: "not for you"']),
        (error(404, "no such model"), ['404: "no such model"', "often ends in /v1", "It has: other-1"]),
        (error(400, "this model takes no images"), ["small grey picture", "this model takes no images"]),
        (Reply(drop=True), ["small grey picture", "It has: other-1"]),  # as `transformers serve` treats unknown models
        (Reply(status=302, headers=(("Location", "http://elsewhere.example/v1"),)), ["http://elsewhere.example"]),
        (Reply(status=429, body={"error": {"code": "insufficient_quota"}}), ["429"]),
        (error(429, "come back tomorrow", Retry_After="86400"), ["come back tomorrow", "asks to wait 86400 s"]),
    ],
)
def test_a_server_that_cannot_be_used_is_an_error_before_anything_is_written(reply, words, serve, pictures, here):
    server = serve(lambda asked: reply, models=("other-1",))
    result = invoke("caption", pictures, *server.options)
    assert result.exit_code == 4, result.stderr
    for each in words:
        assert each in result.stderr
    assert not (here / "captions.jsonl").exists() or (here / "captions.jsonl").read_bytes() == b""
    assert not (here / "captions.jsonl.run.json").exists()


def test_a_server_that_does_not_run_is_an_error_at_once(serve, pictures, here):
    server = serve()
    server.close()
    result = invoke("caption", pictures, *server.options)
    assert result.exit_code == 4
    assert f"openai:{MODEL} at {server.url}: no connection: " in result.stderr
    assert "Start the server" in result.stderr
    assert not (here / "captions.jsonl.run.json").exists()


def test_a_server_that_goes_away_is_waited_for_and_then_given_up(serve, pictures, here, monkeypatch):
    monkeypatch.setattr(client, "PATIENCE_S", 0.3)
    server = serve()

    def leave(asked: Asked) -> Reply:
        if asked.number == 6:
            threading.Thread(target=server.close).start()
            server.closed.wait()
            return Reply(drop=True)
        return Reply()

    server.behaviour = leave
    result = invoke("caption", pictures, *server.options, "--concurrency", 1)
    assert result.exit_code == 4
    assert "no connection: " in result.stderr
    assert "The rows so far are safe" in result.stderr


def test_no_request_is_sent_while_the_server_asks_to_wait(serve, pictures, here):
    server = serve(once(error(429, "slow down", Retry_After="1"), on=lambda asked: asked.number == 2))
    began: list[float] = []
    behaviour: Behaviour = server.behaviour

    def record(asked: Asked) -> Reply:
        began.append(time.monotonic())
        return behaviour(asked)

    server.behaviour = record
    assert invoke("caption", pictures, *server.options, "--concurrency", 1).exit_code == 0
    gaps = [later - earlier for earlier, later in itertools.pairwise(began)]
    assert max(gaps) >= 1  # never less than was asked for
    assert sum(gap >= 1 for gap in gaps) == 1


def test_no_more_requests_than_allowed_are_in_flight(serve, here):
    folder = noise(here / "pictures", 120)
    server = serve(delay_s=0.005)
    assert invoke("caption", folder, *server.options, "--concurrency", 3).exit_code == 0
    assert server.most_in_flight == 3


@pytest.mark.parametrize(
    "reply",
    [
        error(401, f"Incorrect API key provided: {KEY}"),
        error(500, f"header Authorization: Bearer {KEY}"),
        Reply(body=f"<html>{KEY}".encode()),
        Reply(status=302, headers=(("Location", f"http://user:{KEY}@elsewhere.example/{KEY}?key={KEY}"),)),
        Reply(status=400, body={"detail": KEY * 10}),
        Reply(status=400, body=('{"detail": "\\u0073' + KEY[1:] + '"}').encode()),
        Reply(body=answer(f"the key is {KEY}")),
    ],
)
def test_the_key_is_sent_and_is_nowhere_else(reply, serve, pictures, here, monkeypatch, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = serve(lambda asked: Reply() if asked.is_trial and reply.status in (200, 500) else reply)
    result = invoke("caption", pictures, *server.options, "--verbose")
    assert all(asked.headers["Authorization"] == f"Bearer {KEY}" for asked in server.asked)
    everything = [result.output, result.stderr, *capfd.readouterr()]
    everything += [path.read_text() for path in here.iterdir() if path.is_file()]
    assert not any(KEY in each for each in everything)
    cause: BaseException | None = result.exception
    while cause is not None:
        assert KEY not in f"{cause!r} {cause}"
        cause = cause.__cause__ or cause.__context__


def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(serve, pictures, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\nX: y")
    result = invoke("caption", pictures, *serve().options)
    assert (result.exit_code, KEY in result.stderr) == (2, False)
    assert "OPENAI_API_KEY" in result.stderr


def test_redirects_are_not_followed(serve, pictures, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    target = serve()
    headers = (("Location", f"{target.url}/chat/completions"),)
    server = serve(lambda asked: Reply(status=307, headers=headers))
    assert invoke("caption", pictures, *server.options).exit_code == 4
    assert target.asked == []


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.long)])
def test_with_a_fifth_of_faults_no_row_is_lost_and_none_is_there_twice(count, serve, here):
    folder = noise(here / "pictures", count)
    server = serve(injected(0.2, seed=count))
    result = invoke("caption", folder, *server.options)
    assert result.exit_code == 0, result.stderr
    rows = read_rows(here / "captions.jsonl")
    assert [row["file_name"] for row in rows] == [path.name for path in sorted(folder.iterdir())]
    assert [row["text"] for row in rows] == expected(folder)
    assert len(server.asked) > 1.1 * count


@pytest.mark.slow
def test_a_run_that_is_killed_is_finished_by_the_same_command(serve, here):
    folder = noise(here / "pictures", 300)
    server = serve(delay_s=0.01)
    command = ("caption", folder, *server.options, "--concurrency", "4")
    for num_rows in (20, 120):
        process = start(*command, cwd=here)
        wait_until(partial(has_rows, here / "captions.jsonl", num_rows), process)
        process.kill()
        finish(process)
    assert invoke(*command).exit_code == 0
    assert texts(here / "captions.jsonl") == expected(folder)
    assert len(server.asked) < 500


@pytest.mark.slow
def test_a_signal_completes_the_requests_in_flight(serve, here):
    folder = noise(here / "pictures", 300)
    server = serve(delay_s=0.01)
    process = start("caption", folder, *server.options, "--concurrency", "4", cwd=here)
    wait_until(lambda: num_lines(here / "captions.jsonl") >= 20, process)
    process.send_signal(signal.SIGINT)
    _, printed = finish(process)
    assert process.returncode == 130
    assert b"To resume" in printed
    rows = texts(here / "captions.jsonl")
    assert rows == expected(folder)[: len(rows)]
    assert len(server.asked) == len(rows) < 300


def test_an_image_that_is_always_turned_away_costs_its_row_and_no_other(serve, pictures, here):
    def too_large(asked: Asked) -> Reply:
        return error(429, "Request too large") if asked.url == poisoned else Reply()

    poisoned = f"data:image/png;base64,{base64.b64encode((pictures / '003.png').read_bytes()).decode()}"
    noise(pictures / "more", 60)
    server = serve(too_large, delay_s=0.02)
    result = invoke("caption", pictures, *server.options, "--concurrency", "4")
    assert result.exit_code == 3, result.stderr
    rows = read_rows(here / "captions.jsonl")
    assert [row["file_name"] for row in rows if row["status"] == "failed"] == ["003.png"]
    assert len(rows) == 72


def test_answers_that_came_before_the_end_are_rows(serve, here):
    folder = noise(here / "noise", 40)

    def out_of_credit(asked: Asked) -> Reply:
        return error(402, "no credit") if asked.number >= 20 else Reply()

    result = invoke("caption", folder, *serve(out_of_credit).options, "--concurrency", "1")
    assert result.exit_code == 4
    assert "no credit" in result.stderr
    assert "Add credit" in result.stderr
    assert len(read_rows(here / "captions.jsonl")) == 20


def test_refusals_of_a_model_that_works_end_no_run(serve, here):
    folder = noise(here / "noise", 30)
    result = invoke("caption", folder, *serve(lambda asked: Reply() if asked.is_trial else FILTERED).options)
    assert result.exit_code == 3
    assert {row["error"] for row in read_rows(here / "captions.jsonl")} == {"refused"}


FILTERED = Reply(body=answer("", "content_filter"))


def test_a_proxy_of_the_environment_gets_no_key(serve, pictures, here, monkeypatch):
    proxy, server = serve(), serve()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
    assert invoke("caption", pictures, *server.options).exit_code == 0
    assert (len(proxy.asked), len(server.asked)) == (0, 12)


def test_an_address_that_cannot_be_parsed_is_refused(pictures):
    result = invoke("caption", pictures, "-m", "openai:x", "--base-url", "http://[v1.x]/v1")
    assert result.exit_code == 2
    assert "not an address" in result.stderr


def test_a_captioner_works_again_after_a_server_that_asked_to_wait_a_day(serve, pictures):
    def away(asked: Asked) -> Reply:
        return Reply() if asked.is_trial or not busy else error(429, retry_after="86400")

    busy = True
    server = serve(away)
    captioner = Captioner.load(f"openai:{MODEL}", server=ServerOptions(base_url=server.url))
    with pytest.raises(ServerError, match="asks to wait 86400 s"):
        captioner.caption([pictures / "000.png"])
    busy = False
    assert captioner.caption([pictures / "000.png"]) == [text_of((pictures / "000.png").read_bytes())]


@pytest.mark.parametrize("is_away", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_signal_ends_a_run_whose_server_is_away_or_slow(is_away, serve, here, monkeypatch):
    noise(here / "noise", 60)
    server = serve(lambda asked: Reply(silent=True) if not asked.is_trial and asked.number >= 8 else Reply())
    process = start("caption", "noise", *server.options, "--concurrency", "2", cwd=here)
    wait_until(lambda: has_rows(here / "captions.jsonl", 8), process)
    if is_away:
        server.close()
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert process.returncode == 143
    assert time.monotonic() - began < 60  # of request-timeout 120 s and patience of 300 s
    assert len(read_rows(here / "captions.jsonl")) == 8
