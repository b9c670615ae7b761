"""`caption` and `vqa` with a server that answers."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from blip2cap.captioner import Captioner
from blip2cap.server_options import ServerOptions
from tests.commands import draw_scenes, invoke, read_rows
from tests.fault_server import MODEL, Asked, Reply, answer, error
from tests.server_runs import expected, texts
from tests.test_layers import HEAVY, imported_by


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


@pytest.mark.long
def test_a_run_imports_no_torch(serve, pictures, here):
    server = serve()
    command = ("-m", "blip2cap", "caption", str(pictures), *server.options)
    for again in ((), ("--retry-failed",), ("-o", "parts/")):
        assert not imported_by(here, *command, *again) & HEAVY
    assert len(texts(here / "captions.jsonl")) == 12


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
