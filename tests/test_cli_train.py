"""`blip2cap train`: what it prints, what it writes, and that RUN is a model."""

import json
import os
import shlex
import signal
import socket
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from blip2cap.cli.train import TerminalListener
from blip2cap.tiny.scenes import draw
from tests.commands import invoke, start
from tests.full_disk import files_of_at_most
from tests.test_layers import imported_by

QUICK = ("--epochs", "2", "--batch-size", "3", "--num-workers", "0", "--log-every", "1", "--device", "cpu")
QUICK_VAL = (*QUICK, "--val", "val.json", "--num-samples", "1")


@pytest.fixture
def data(here):
    """Six scenes to learn and two to evaluate on, with captions and questions, in the current folder."""
    (here / "imgs").mkdir()
    for name, seeds in {"train": range(6), "val": range(6, 8)}.items():
        rows, asked = [], []
        for seed in seeds:
            scene = draw(seed, (64, 48))
            scene.image.save(here / f"imgs/{seed}.png")
            rows.append({"image": f"{seed}.png", "caption": scene.caption})
            answers = {"question": scene.questions[0].text, "answer": [scene.questions[0].answer]}
            asked.append({"image": f"{seed}.png", **answers, "question_id": seed})
        (here / f"{name}.json").write_text(json.dumps(rows))
        (here / f"{name}-vqa.json").write_text(json.dumps(asked))
    return here


def train(task, *arguments, model="tiny", data="train.json"):
    return invoke("train", task, "--data", data, "--images", "imgs", "-m", model, *arguments)


def files(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_finished_run_is_a_model_with_its_reports(data):
    done = train("caption", "-o", "RUN", *QUICK_VAL)
    assert done.exit_code == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "6 examples and 2 for validation; 4 steps of 3, 2 in an epoch; " in done.stderr
    assert "parameters train (30.5 %); about " in done.stderr
    assert sum(line.startswith("Example ") for line in lines) == 3
    assert sum(line.startswith("Train: data epoch: [1]  [2/2]  eta: 0:00:00  lr: ") for line in lines) == 1
    assert sum(line.startswith("Evaluation: step ") for line in lines) == 2
    assert "  image: 6.png, text: " in done.stderr
    assert lines[-1].endswith("To use it: blip2cap caption IMAGES --model RUN")
    assert {"recipe.toml", "metrics.jsonl", "samples.jsonl", "loss.png", "loss.svg", "config.json"} < files(
        data / "RUN"
    )
    assert not [name for name in files(data / "RUN") if name.endswith(".tmp")]

    captioned = invoke("caption", "imgs", "-m", "RUN", "-o", "captions.jsonl")
    assert captioned.exit_code == 0, captioned.stderr

    again = train("caption", "-o", "RUN", *QUICK_VAL)
    assert (again.exit_code, again.stderr) == (
        0,
        "RUN is finished, nothing to do. To use it: blip2cap caption IMAGES --model RUN\n",
    )
    other = train("caption", "-o", "RUN", *QUICK_VAL, "--learning-rate", "1e-4")
    assert other.exit_code == 5
    assert "RUN is a training with another recipe: --learning-rate 1e-05, now 0.0001. Resume" in other.stderr


@pytest.mark.long
@pytest.mark.parametrize(("task", "model", "use"), [("vqa", "tiny", "vqa"), ("stage1", "tiny-itm", "match")])
def test_other_tasks_make_models_too(data, task, model, use):
    data_file = "train-vqa.json" if task == "vqa" else "train.json"
    done = train(task, "-o", "RUN", *QUICK, "--json", model=model, data=data_file)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout) == {
        "run": "RUN",
        "already_finished": False,
        "steps": 4,
        "chosen_step": 4,
        "best_val_loss": None,
        "seconds": json.loads(done.stdout)["seconds"],
    }
    texts = ("--question", "is there a boat?") if use == "vqa" else ("--text", "a boat")
    assert invoke(use, "imgs", "-m", "RUN", *texts, "-o", "rows.jsonl").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "metric", "name"), [("caption", "cider", "cider"), ("vqa", "exact-match", "exact_match")]
)
def test_texts_may_choose_the_best_checkpoint(data, task, metric, name):
    end = "-vqa.json" if task == "vqa" else ".json"
    options = (*QUICK, "--val", f"val{end}", "--best-by", metric)
    done = train(task, "-o", "RUN", *options, "--json", data=f"train{end}")
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in (data / "RUN/metrics.jsonl").read_text().splitlines()]
    values = {row["step"]: row[f"val_{name}"] for row in rows if "val_loss" in row}
    assert len(values) == 2
    facts = json.loads(done.stdout)
    assert facts[f"best_val_{name}"] == pytest.approx(max(values.values()), abs=1e-5)
    assert values[facts["chosen_step"]] == max(values.values())


@pytest.mark.slow
def test_a_finished_run_of_adapters_alone_is_finished_too(data):
    arguments = ("-o", "RUN", *QUICK, "--train", "lora", "--no-merge")
    assert train("caption", *arguments).exit_code == 0
    assert "config.json" not in files(data / "RUN")
    again = train("caption", *arguments)
    assert (again.exit_code, again.stderr.splitlines()[0][:39]) == (0, "RUN is finished, nothing to do. To use ")


@pytest.mark.slow
def test_an_image_that_is_gone_ends_the_training_with_one_line_that_names_it(data, monkeypatch):
    begin = TerminalListener.begin

    def lose_images(self, num_steps, done):
        for path in (data / "imgs").iterdir():
            path.unlink()
        begin(self, num_steps, done)

    monkeypatch.setattr(TerminalListener, "begin", lose_images)
    lost = train("caption", "-o", "RUN", *QUICK, "--num-workers", "1")
    assert (lost.exit_code, "Traceback" in lost.stderr) == (2, False)
    last = lost.stderr.splitlines()[-1]
    assert last.startswith("blip2cap: train.json[")
    assert last.endswith(
        ".png: vanished: no such file. All images could be read before the first step. Restore it, then "
        "start the same command again: it continues."
    )


@pytest.mark.long
def test_mixed_precision_makes_samples_and_a_model(data):
    done = train("caption", "-o", "RUN", *QUICK_VAL, "--dtype", "bfloat16", "--train", "lora")
    assert done.exit_code == 0, done.stderr
    assert "  image: 6.png, text: " in done.stderr
    assert invoke("caption", "imgs", "-m", "RUN", "-o", "captions.jsonl").exit_code == 0


@pytest.mark.slow
def test_a_dry_run_measures_a_batch_and_writes_nothing(data):
    before = files(data)
    done = train("caption", "-o", "RUN", *QUICK, "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["examples"], facts["steps"], facts["steps_per_epoch"]) == (6, 4, 2)
    assert facts["estimated_peak_bytes"] - facts["peak_bytes_of_one_batch"] == 8 * facts["trainable_parameters"]
    assert files(data) == before


@pytest.mark.long
def test_flags_override_a_recipe_which_overrides_defaults(data):
    (data / "my.toml").write_text('[model]\ntrain = ["vision"]\n[optim]\nlearning-rate = 2e-3\n[loop]\nepochs = 7\n')
    assert train("caption", "-o", "RUN", "--recipe", "my.toml", *QUICK).exit_code == 0
    written = (data / "RUN/recipe.toml").read_text()
    assert 'train = ["vision"]' in written
    assert "learning-rate = 0.002" in written
    assert "epochs = 2" in written
    again = invoke("train", "caption", "--recipe", "RUN/recipe.toml", "-o", "RUN")
    assert again.stderr.startswith("RUN is finished"), again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("captions",), "captions: no such task. Expected one of caption, vqa, stage1, stage2."),
        (("caption", "--data", "train.json"), "--out is missing: name the folder of the training, e.g. --out RUN."),
        (("caption", "-o", "RUN"), "--data is missing: name a file of images with their texts"),
        (("stage2", "--data", "d.json", "-o", "RUN", "--train", "llm"), "--train llm: not in stage2: "),
        (("caption", "--data", "d.json", "-o", "RUN", "--best-by", "exact-match"), "is for vqa, not for caption."),
        (
            ("caption", "--data", "d.json", "-o", "RUN", "--best-by", "cider"),
            "--best-by cider has no effect without --val",
        ),
        (("caption", "--recipe", "nope"), "--recipe nope: no such file. Expected a TOML file, or one of coco-caption"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_is_loaded(here, arguments, message):
    done = invoke("train", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.slow
def test_a_run_that_cannot_be_written_is_refused_before_data_is_read(data):
    for out, message in {
        "imgs": "imgs: a folder with other files, such as 0.png, and no recipe.toml. Use a new or empty folder",
        "train.json": "train.json: a file. Expected a folder for the training",
        "nowhere/RUN": "nowhere/RUN cannot be created: its parent folder does not exist. Create that first.",
    }.items():
        done = train("caption", "-o", out, *QUICK, data="no-such.json")
        assert done.exit_code in (5, 6)
        assert message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--early-stop", "2"), "--early-stop has no effect without --val. Add it, or leave --early-stop out."),
        (("--report-to", "trackio"), "--report-to trackio: not installed. Install it: pip install trackio."),
        (("--batch-size", "7"), "--batch-size 7: there are only 6 examples. Use at most 6."),
    ],
)
def test_options_that_cannot_work_are_refused(data, arguments, message):
    done = train("caption", "-o", "RUN", *QUICK, *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (data / "RUN").exists()


@pytest.mark.slow
def test_without_matplotlib_no_training_begins(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    done = train("caption", "-o", "RUN", *QUICK)
    assert done.exit_code == 2
    assert (
        "matplotlib is not installed; it draws loss.png and loss.svg. Install it: pip install 'blip2cap[train]'."
        in (done.stderr)
    )


LONG = ("--max-steps", "300", "--batch-size", "3", "--num-workers", "2", "--log-every", "1", "--device", "cpu")


def started(*arguments):
    """Start the command in a process group of its own, as a shell does; return it after a step, and its command."""
    command = ("blip2cap", "train", "caption", "--data", "train.json", "--images", "imgs", "-m", "tiny", *arguments)
    process = start(*command[1:], cwd=Path.cwd(), process_group=0)
    assert process.stderr is not None
    assert any(line.startswith(b"Train:") for line in process.stderr)
    return process, shlex.join(("python", "-m", *command))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "exit_code", "send"),
    [
        (signal.SIGTERM, 143, os.killpg),  # to the whole group, with the processes that decode: clusters, `timeout`
        pytest.param(signal.SIGINT, 130, os.killpg, marks=pytest.mark.long),
        pytest.param(signal.SIGHUP, 129, os.killpg, marks=pytest.mark.long),
        pytest.param(signal.SIGUSR1, 138, os.killpg, marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, 143, os.kill, marks=pytest.mark.long),
    ],
)
def test_a_signal_ends_a_training_with_a_checkpoint_and_the_command_that_continues(data, number, exit_code, send):
    process, command = started("-o", "RUN", *LONG)
    send(process.pid, number)
    _, stderr = process.communicate()
    assert process.returncode == exit_code, stderr
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    lines = stderr.decode().splitlines()
    assert lines.count("Stopping after this batch; a second signal stops at once.") == 1  # not by processes that decode
    steps = int(lines[-1].removeprefix("Stopped after step ").split()[0])
    assert lines[-1] == f"Stopped after step {steps} of 300. To continue: {command}"
    assert files(data / "RUN/checkpoints") == {f"step-{steps:06}"}
    assert "config.json" not in files(data / "RUN")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_signal_to_one_of_two_processes_ends_both_with_a_checkpoint(data):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        launcher = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    command = ("train", "caption", "--data", "train.json", "--images", "imgs", "-m", "tiny", "-o", "RUN")
    options = ("--max-steps", "300", "--batch-size", "4", "--num-workers", "0", "--log-every", "1", "--device", "cpu")
    main, other = (
        start(*command, *options, cwd=data, env={**os.environ, **launcher, "RANK": rank, "LOCAL_RANK": rank})
        for rank in ("0", "1")
    )
    assert main.stderr is not None
    assert any(line.startswith(b"Train:") for line in main.stderr)
    os.kill(other.pid, signal.SIGTERM)
    stderr = main.communicate()[1].decode()
    other.communicate()
    assert (main.returncode, other.returncode) == (143, 143), stderr
    steps = int(stderr.splitlines()[-1].removeprefix("Stopped after step ").split()[0])
    assert files(data / "RUN/checkpoints") == {f"step-{steps:06}"}


@pytest.mark.long
def test_a_full_disk_is_an_error_and_the_same_command_goes_on_to_the_same_model(data):
    options = ("--train", "lora", *QUICK)
    assert train("caption", "-o", "unbroken", *options).exit_code == 0
    for num_bytes, name in ((50_000, "RUN/checkpoints/step-000002"), (2_000_000, "RUN")):
        with files_of_at_most(num_bytes):
            done = train("caption", "-o", "RUN", *options)
        assert done.exit_code == 6
        assert done.stderr.splitlines()[-1].startswith(f"blip2cap: {name} cannot be written: ")
        assert "then run the same command again: it continues at the last checkpoint" in done.stderr
        assert "Traceback" not in done.stderr
        assert not {"config.json", ".model.tmp"} & files(data / "RUN")
    assert files(data / "RUN/checkpoints") == {"step-000004"}
    done = train("caption", "-o", "RUN", *options)
    assert done.exit_code == 0, done.stderr
    resumed, unbroken = (load_file(data / out / "model.safetensors") for out in ("RUN", "unbroken"))
    assert [name for name in unbroken if not resumed[name].equal(unbroken[name])] == []


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_killed_training_of_the_real_model_ends_with_the_weights_of_an_unbroken_one(data):
    options = ("--max-steps", "12", *LONG[2:], "--checkpoint-every", "4", "--train", "qformer", "--train", "lora")
    process, _ = started("-o", "RUN", *options)
    assert any(b"[1/2]" in line and b"epoch: [2]" in line for line in process.stderr)  # step 5
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert files(data / "RUN/checkpoints") >= {"step-000004"}
    for out in ("RUN", "unbroken"):
        done = train("caption", "-o", out, *options)
        assert done.exit_code == 0, done.stderr
        assert ("Resuming RUN after step" in done.stderr) == (out == "RUN")
    resumed, unbroken = (load_file(data / out / "model.safetensors") for out in ("RUN", "unbroken"))
    assert resumed.keys() == unbroken.keys()
    assert [name for name in unbroken if not resumed[name].equal(unbroken[name])] == []
    rows = [(data / out / "metrics.jsonl").read_text().splitlines() for out in ("RUN", "unbroken")]
    losses = [[json.loads(row)["loss"] for row in each] for each in rows]
    assert losses[0] == losses[1]


def test_its_help_imports_no_torch(tmp_path):
    assert not imported_by(tmp_path, "-m", "blip2cap", "train", "--help") & {"torch", "transformers", "numpy"}
