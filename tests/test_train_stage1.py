"""The losses of stage 1: against the transformers class, simple formulas, and several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from transformers import Blip2ForImageTextRetrieval

from blip2cap.decode.image import Pixels
from blip2cap.models.checkpoint import find
from blip2cap.models.matching.load import load
from blip2cap.options import ModelOptions
from blip2cap.records import Prompt
from blip2cap.train.model.stage1 import draw_negatives, generation_mask
from blip2cap.train.model.trainee import Trainee
from blip2cap.train.options.model import OptimOptions, TuneOptions
from tests.checkpoints import MATCHING_KINDS
from tests.training import noise_images, pair_batch, read_base


def make_trainee(folder: Path, *train: str) -> Trainee:
    tune = TuneOptions(train=train or ("qformer",))
    trainee = Trainee(read_base(folder, "stage1", tune), stage="stage1", tune=tune, seed=1)
    for module in trainee.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in trainee.model.qformer.encoder.layer:
        for attention in (layer.attention, *([layer.crossattention] if layer.has_cross_attention else [])):
            attention.attention.attention_dropout = 0.0
    return trainee.train()


def similarities(trainee: Trainee, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the cosines of all images with all texts, by the transformers class, which averages nothing."""
    model, config = trainee.model, trainee.model.config
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if config.image_token_index is not None:
        ids = functional.pad(ids, (config.num_query_tokens, 0), value=config.image_token_index)
        mask = functional.pad(mask, (config.num_query_tokens, 0), value=1)
    output = model(pixel_values=batch["pixel_values"], input_ids=ids, attention_mask=mask)
    return torch.einsum("iqe,je->ijq", output.image_embeds, output.text_embeds).amax(-1)


@pytest.mark.parametrize("kind", MATCHING_KINDS)
def test_contrast_is_the_smoothed_cross_entropy_of_the_cosines_of_the_class(
    checkpoints: Callable[[str], Path], kind: str
) -> None:
    trainee = make_trainee(checkpoints(kind))
    batch = pair_batch(trainee.base) | {"image_ids": torch.arange(4)}
    logits = similarities(trainee, batch) / 0.07
    targets = torch.arange(4)
    expected = sum(functional.cross_entropy(each, targets, label_smoothing=0.1) for each in (logits, logits.T)) / 2
    torch.testing.assert_close(trainee(**batch)["loss_itc"], expected, rtol=1e-4, atol=1e-5)


def test_pairs_of_the_same_image_share_the_target_of_the_contrast(checkpoints: Callable[[str], Path]) -> None:
    trainee = make_trainee(checkpoints("matching"))
    batch = pair_batch(trainee.base)
    logits = similarities(trainee, batch) / 0.07
    shared = torch.eye(4)
    shared[:2, :2] = 0.5
    targets = 0.9 * shared + 0.1 / 4
    expected = sum(-(targets * each.log_softmax(1)).sum(1).mean() for each in (logits, logits.T)) / 2
    torch.testing.assert_close(trainee(**batch)["loss_itc"], expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_sum_of_its_parts_and_reaches_every_parameter(checkpoints: Callable[[str], Path]) -> None:
    trainee = make_trainee(checkpoints("matching"), "all")
    losses = trainee(**pair_batch(trainee.base))
    assert [*losses] == ["loss", "loss_itc", "loss_itm", "loss_lm"]
    torch.testing.assert_close(losses["loss"], losses["loss_itc"] + losses["loss_itm"] + losses["loss_lm"])
    losses["loss"].backward()
    assert [name for name, parameter in trainee.trainable().items() if parameter.grad is None] == []


def test_a_match_is_judged_as_by_the_class(checkpoints: Callable[[str], Path]) -> None:
    """With two images, every negative is known: the other one."""
    trainee = make_trainee(checkpoints("matching"))
    batch = pair_batch(trainee.base, 2) | {"image_ids": torch.arange(2)}
    images, texts = torch.tensor([0, 1, 1, 0, 0, 1]), torch.tensor([0, 1, 0, 1, 1, 0])
    output = trainee.model(
        pixel_values=batch["pixel_values"][images],
        input_ids=batch["input_ids"][texts],
        attention_mask=batch["attention_mask"][texts],
        use_image_text_matching_head=True,
    )
    expected = functional.cross_entropy(output.logits_per_image, torch.tensor([1, 1, 0, 0, 0, 0]))
    torch.testing.assert_close(trainee(**batch)["loss_itm"], expected, rtol=1e-4, atol=1e-5)


def test_an_image_alone_has_no_negatives(checkpoints: Callable[[str], Path]) -> None:
    trainee = make_trainee(checkpoints("matching"))
    batch = pair_batch(trainee.base, 2)  # both of the same image
    output = trainee.model(**{k: v for k, v in batch.items() if k != "image_ids"}, use_image_text_matching_head=True)
    expected = functional.cross_entropy(output.logits_per_image, torch.tensor([1, 1]))
    torch.testing.assert_close(trainee(**batch)["loss_itm"], expected, rtol=1e-4, atol=1e-5)


def test_a_generated_token_sees_the_queries_and_earlier_tokens_only() -> None:
    mask = generation_mask(2, torch.tensor([[1, 1, 0]]))[0, 0] == 0
    assert mask.int().tolist() == [
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0],
    ]


def test_the_generated_text_depends_on_the_image_and_not_on_its_padding(checkpoints: Callable[[str], Path]) -> None:
    trainee = make_trainee(checkpoints("matching"))
    batch = pair_batch(trainee.base)
    loss = trainee(**batch)["loss_lm"]
    longer = {name: functional.pad(batch[name], (0, 3)) for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(trainee(**batch | longer)["loss_lm"], loss)
    assert abs(trainee(**batch | {"pixel_values": batch["pixel_values"].flip(0)})["loss_lm"] - loss) > 1e-3


def test_negatives_are_drawn_by_similarity_and_never_of_the_same_image() -> None:
    similar = torch.tensor([[9.0, 2.0, 1.0, 9.0]]).log()
    same = torch.tensor([[True, False, False, True]])
    numbers = torch.linspace(0, 1, 3001, dtype=torch.float64)[:-1]
    drawn = draw_negatives(similar.expand(3000, 4), same.expand(3000, 4), numbers)
    assert torch.bincount(drawn, minlength=4).tolist() == pytest.approx([0, 2000, 1000, 0], abs=3)


@pytest.mark.long
def test_stage_1_learns(checkpoints: Callable[[str], Path]) -> None:
    trainee = make_trainee(checkpoints("matching"))
    batch = pair_batch(trainee.base)
    optimiser = torch.optim.AdamW(trainee.groups(OptimOptions(learning_rate=2e-3)))
    first = trainee(**batch)
    for _ in range(30):
        trainee(**batch)["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    last = trainee(**batch)
    for name in ("loss_itc", "loss_itm", "loss_lm"):
        assert last[name] < 0.9 * first[name], name


@pytest.mark.parametrize("kind", MATCHING_KINDS)
def test_a_finished_model_matches_by_blip2cap_and_by_transformers(
    checkpoints: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    trainee = make_trainee(checkpoints(kind), "all").eval()
    with torch.no_grad():
        for parameter in trainee.trainable().values():
            parameter.mul_(1.1)
    trainee.save(tmp_path)
    plain = Blip2ForImageTextRetrieval.from_pretrained(tmp_path)
    assert plain.state_dict().keys() == trainee.model.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, trainee.model.state_dict()[name]), name
    options = ModelOptions(name=str(tmp_path), device="cpu", dtype="float32")
    pixels = [image.numpy() for image in noise_images(2)]
    expected, written = scores(trainee.captioner(), pixels), scores(load(find(options), options), pixels)
    assert written == pytest.approx(expected, abs=1e-5)


def scores(model: Any, pixels: list[Pixels]) -> list[float]:
    session = model.start_match(capacity=None)
    prompts = [Prompt(image=number, text=text, name="") for number in range(2) for text in ("w1 w2", "a photo")]
    tickets = session.add(session.encode(pixels), prompts)
    results: dict[int, Any] = {}
    while len(results) < len(tickets):
        results.update(session.advance())
    return [score for ticket in tickets for score in (results[ticket].itm, results[ticket].itc)]


def step(trainee: Trainee, module: torch.nn.Module, rows: slice) -> dict[str, torch.Tensor]:
    """Return the losses of some rows of a batch of six, and the gradients; the last three texts are short."""
    torch.manual_seed(5)
    batch = pair_batch(trainee.base, 6)
    batch["input_ids"][3:, -2], batch["input_ids"][3:, -1], batch["attention_mask"][3:, -1] = 1, 0, 0
    batch = {name: value[rows] for name, value in batch.items()}
    length = int(batch["attention_mask"].sum(dim=1).max())
    losses: dict[str, torch.Tensor] = module(
        **batch | {"input_ids": batch["input_ids"][:, :length], "attention_mask": batch["attention_mask"][:, :length]}
    )
    losses["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in trainee.trainable().items() if parameter.grad is not None}
    return {**losses, **gradients}


def run_process(folder: Path, out: Path, rank: int) -> None:
    """Take a step on one half of the batch as one of two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=rank, world_size=2)
    trainee = make_trainee(folder, "all")
    parallel = DistributedDataParallel(trainee)
    torch.save(step(trainee, parallel, slice(3 * rank, 3 * rank + 3)), out / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.long
def test_two_processes_equal_one_at_the_same_global_batch(checkpoints: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoints("matching")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=run_process, args=(folder, tmp_path, rank)) for rank in range(2)]
    for process in processes:
        process.start()
    trainee = make_trainee(folder, "all")
    expected = step(trainee, trainee, slice(0, 6))
    for process in processes:
        process.join()
        assert process.exitcode == 0
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys() == expected.keys() > {"loss", "stage1.log_temperature", "model.query_tokens"}
    # The gradients of key biases are rounding errors: scores of all keys change alike.
    largest = max(float(value.detach().abs().max()) for value in expected.values())
    for name, value in expected.items():
        mean = (first[name] + second[name]) / 2  # gradients have been averaged, losses are those of one process
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-6 * largest, msg=name)
