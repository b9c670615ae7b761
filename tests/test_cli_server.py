"""`caption` and `vqa` with a server that answers, fails, stalls and lies."""

from __future__ import annotations

import base64
import itertools
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip2cap.captioner import Captioner
from blip2cap.errors import ServerError
from blip2cap.generate_options import GenerateOptions
from blip2cap.models.checkpoint import find
from blip2cap.models.server import client, throttle
from blip2cap.models.server.model import load
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from blip2cap.server_options import ServerOptions
from tests.commands import draw_scenes, finish, invoke, num_lines, read_rows, start, wait_until
from tests.fault_server import KEY, MODEL, Asked, Behaviour, FaultServer, Reply, answer, error, good, text_of
from tests.test_layers import HEAVY, imported_by

Start = Callable[..., FaultServer]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start servers, which end with the test; pauses of the client are short."""
    monkeypatch.setattr(client, "_PAUSES_S", (0.01, 0.02))
    monkeypatch.setattr(throttle, "_FIRST_PAUSE_S", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    servers: list[FaultServer] = []

    def start(behaviour: Behaviour = good, **settings: object) -> FaultServer:
        servers.append(FaultServer(behaviour, **settings))  # type: ignore[arg-type]
        return servers[-1]

    yield start
    for each in servers:
        each.close()


@pytest.fixture
def pictures(here: Path) -> Path:
    """A folder with 12 images."""
    return draw_scenes(here / "pictures", 12)


def noise(folder: Path, count: int) -> Path:
    """Save small images, each with other pixels."""
    folder.mkdir()
    random_numbers = np.random.default_rng(0)
    for number in range(count):
        pixels = random_numbers.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.png")
    return folder


def texts(path: Path) -> list[str]:
    return [row["text"] for row in read_rows(path)]


def has_rows(path: Path, count: int) -> bool:
    return num_lines(path) >= count


def expected(folder: Path) -> list[str]:
    """Return the texts of a folder of small PNG files, which are sent as they are."""
    return [text_of(path.read_bytes()) for path in sorted(folder.rglob("*.png"))]


def once(fault: Reply, *, on: Callable[[Asked], bool] = lambda asked: asked.number % 3 == 0) -> Behaviour:
    """Fail at the first attempt for some of the images."""
    return lambda asked: fault if not asked.is_trial and asked.attempt == 0 and on(asked) else Reply()


def test_every_image_gets_the_answer_about_itself_in_order(serve, pictures, here):
    server = serve()
    options = ("--prompt", "What is here?", "--system", "Be brief.", "--max-new-tokens", 50)
    result = invoke("caption", pictures, *server.options, *options)
    assert result.exit_code == 0, result.stderr
    rows = read_rows(here / "captions.jsonl")
    assert [row["text"] for row in rows] == expected(pictures)
    assert {(row["num_tokens"], row["finish_reason"], row["width"]) for row in rows} == {(7, "stop", 64)}
    assert f"openai:{MODEL}: at most 32 requests at once to {server.url}" in result.stderr
    assert "1200 + 84 tokens" in result.stderr
    body = server.asked[0].body
    assert (body["model"], body["max_tokens"], body["temperature"]) == (MODEL, 50, 0.0)
    assert {asked.prompt for asked in server.asked} == {"What is here?"}
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert not {"seed", "top_p", "frequency_penalty"} & body.keys()


def test_questions_are_asked_about_every_image(serve, pictures, here):
    server = serve(lambda asked: Reply(body=answer(f"{asked.prompt} yes")))
    result = invoke("vqa", pictures, *server.options, "-q", "red?", "-q", "blue?")
    assert result.exit_code == 0, result.stderr
    rows = read_rows(here / "answers.jsonl")
    assert [row["answer"] for row in rows] == ["red? yes", "blue? yes"] * 12


def test_equal_images_are_asked_about_once(serve, here):
    folder = draw_scenes(here / "pictures", 1)
    for name in "abc":
        (folder / f"{name}.png").write_bytes((folder / "000.png").read_bytes())
    server = serve()
    assert invoke("caption", folder, *server.options).exit_code == 0
    assert (len(server.asked), len(texts(here / "captions.jsonl"))) == (1, 4)


def test_samples_have_seeds_of_their_own_and_several_captions_are_several_requests(serve, pictures, here):
    server = serve(lambda asked: Reply(body=answer(f"seed {asked.body.get('seed')}")))
    sampled = ("--temperature", 0.7, "--top-p", 0.9, "--num-captions", 2)
    for out in ("a.jsonl", "b.jsonl"):
        assert invoke("caption", pictures, *server.options, *sampled, "-o", out).exit_code == 0
    rows = read_rows(here / "a.jsonl")
    assert len({text for row in rows for text in row["texts"]}) == 24
    assert rows == read_rows(here / "b.jsonl")  # in whatever order they were sent
    assert {(asked.body["temperature"], asked.body["top_p"]) for asked in server.asked} == {(0.7, 0.9)}


def test_a_server_that_takes_no_seed_is_asked_without_and_that_is_said(serve, pictures, here):
    server = serve(lambda asked: error(400, "Unrecognized request argument: seed") if "seed" in asked.body else Reply())
    result = invoke("caption", pictures, *server.options, "--temperature", 1)
    assert result.exit_code == 0, result.stderr
    assert "takes no seed" in result.stderr
    assert not any("seed" in asked.body for asked in server.asked)


def test_a_server_that_wants_another_name_of_the_limit_gets_it(serve, pictures):
    message = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    server = serve(lambda asked: error(400, message) if "max_tokens" in asked.body else Reply())
    assert invoke("caption", pictures, *server.options).exit_code == 0
    assert {asked.body["max_completion_tokens"] for asked in server.asked} == {30}


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


def test_another_server_or_model_is_another_output(serve, pictures, here):
    first, second = serve(), serve()
    assert invoke("caption", pictures, *first.options).exit_code == 0
    settings = json.loads((here / "captions.jsonl.run.json").read_text())["settings"]
    assert (settings["server"], settings["model"], settings["max_pixels"]) == (first.url, f"openai:{MODEL}", 1 << 20)
    result = invoke("caption", pictures, *second.options)
    assert (result.exit_code, "--base-url was" in result.stderr) == (5, True)
    result = invoke("caption", pictures, "-m", "openai:other", "--base-url", first.url)
    assert (result.exit_code, "--model was" in result.stderr) == (5, True)
    before = len(first.asked)
    result = invoke("caption", pictures, *first.options)
    assert (result.exit_code, "nothing to do" in result.stderr, len(first.asked)) == (0, True, before)


@pytest.mark.parametrize("out", ["rows.parquet", "parts/"])
def test_other_outputs(out, serve, pictures, here):
    server = serve()
    result = invoke("caption", pictures, *server.options, "-o", out, *(("--part-size", 5) if out == "parts/" else ()))
    assert result.exit_code == 0, result.stderr
    shown = invoke("status", out)
    assert shown.exit_code == 0, shown.stderr
    assert len(server.asked) == 12


def test_the_loop_guard_asks_again_with_a_penalty(serve, pictures, here):
    looping = "a dog " * 12

    def loop(asked: Asked) -> Reply:
        return Reply() if "frequency_penalty" in asked.body else Reply(body=answer(looping.strip(), "length"))

    server = serve(loop)
    result = invoke("caption", pictures, *server.options, "--loop-guard")
    assert result.exit_code == 0, result.stderr
    rows = read_rows(here / "captions.jsonl")
    assert [row["text"] for row in rows] == expected(pictures)
    assert {row["flag"] for row in rows} == {"retried"}


def test_large_or_turned_images_are_made_smaller_and_upright(serve, here):
    (here / "pictures").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 100), "red").save(here / "pictures" / "a.jpg", exif=exif)
    Image.new("RGBA", (300, 100), "red").save(here / "pictures" / "b.png")
    Image.new("RGB", (50, 40), "red").save(here / "pictures" / "c.png")
    server = serve()
    result = invoke("caption", "pictures", *server.options, "--max-pixels", 10_000)
    assert result.exit_code == 0, result.stderr
    sizes = [(row["width"], row["height"]) for row in read_rows(here / "captions.jsonl")]
    assert sizes == [(100, 300), (300, 100), (50, 40)]
    sent = {asked.url.split(";")[0] for asked in server.asked}
    assert sent == {"data:image/jpeg", "data:image/png"}
    assert (here / "pictures" / "c.png").read_bytes() in [asked.image for asked in server.asked]


def test_a_plan_shows_tokens_and_cost_and_asks_nobody(serve, pictures, here):
    server = serve()
    (here / "prices.toml").write_text("price-input = 1.5\nprice-output = 6\n")
    result = invoke("caption", pictures, *server.options, "--dry-run", "--config", "prices.toml")
    assert "at most about 16155 + 360 tokens for 0.0264" in result.stderr
    assert server.asked == []
    result = invoke("caption", pictures, *server.options, "--json", "--config", "prices.toml")
    facts = json.loads(result.stdout)
    assert (facts["prompt_tokens"], facts["tokens"], facts["cost"]) == (1200, 84, 0.0023)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--num-beams", 3), "--num-beams 3: the chat API has no such option"),
        (("--no-repeat-ngram-size", 3), "--no-repeat-ngram-size 3: the chat API"),
        (("--temperature", 1, "--top-k", 5), "--top-k 5: the chat API"),
        (("--repetition-penalty", 1.5), "--repetition-penalty 1.5: the chat API"),
        (("--min-new-tokens", 3), "--min-new-tokens 3: the chat API"),
        (("--dtype", "float32"), "--dtype has no effect"),
        (("--quantize", "int8"), "--quantize has no effect"),
        (("--device", "cpu"), "--device has no effect"),
        (("--revision", "main"), "--revision has no effect"),
        (("--batch-size", 4), "--batch-size 4 has no effect"),
        (("--workers", 2), "--workers or --devices and --model"),
        (("--ray", "auto", "-o", "parts/"), "--ray and --model"),
    ],
)
def test_options_that_a_server_does_not_take_are_refused(options, words, serve, pictures, here):
    server = serve()
    result = invoke("caption", pictures, *server.options, *options)
    assert (result.exit_code, server.asked) == (2, [])
    assert words in result.stderr
    assert not (here / "captions.jsonl.run.json").exists()


def test_a_run_imports_no_torch(serve, pictures, here):
    server = serve()
    command = ("-m", "blip2cap", "caption", str(pictures), *server.options)
    for again in ((), ("--retry-failed",), ("-o", "parts/")):
        assert not imported_by(here, *command, *again) & HEAVY
    assert len(texts(here / "captions.jsonl")) == 12


def injected(share: float, seed: int) -> Behaviour:
    """Fail at this share of the first attempts, in every way, and answer every later one."""
    faults = [error(500), Reply(cut=True), Reply(drop=True), Reply(body=b'{"choices": ['), error(502)]

    def behave(asked: Asked) -> Reply:
        drawn = random.Random(f"{seed} {asked.url}")
        if asked.is_trial or asked.attempt or drawn.random() >= share:
            return Reply()
        if asked.number in (40, 41, 42, 90):
            return error(429, "slow down", Retry_After="0")
        return drawn.choice(faults)

    return behave


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


def test_from_python(serve, pictures, here):
    server = serve()
    options = ServerOptions(base_url=server.url, concurrency=4)
    captioner = Captioner.load(f"openai:{MODEL}", server=options, max_pixels=5_000)
    paths = sorted(pictures.iterdir())
    assert captioner.caption(paths) == expected(pictures)
    assert captioner.ask([Image.open(paths[0])], "what?")[0].startswith("picture ")
    assert captioner.caption_folder(pictures, out="rows.jsonl").num_ok == 12
    assert texts(here / "rows.jsonl") == expected(pictures)
    assert json.loads((here / "rows.jsonl.run.json").read_text())["settings"]["max_pixels"] == 5_000
    assert [row.text for row in captioner.caption_folder(pictures)] == expected(pictures)


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


@pytest.mark.parametrize("is_away", [True, False])
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
