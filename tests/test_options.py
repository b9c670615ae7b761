import dataclasses
import math
import os

import pytest

from blip2cap.errors import UsageError
from blip2cap.generate_options import GenerateOptions, TextOptions
from blip2cap.options import BatchOptions, DecodeOptions, Kind, ModelOptions, OutputOptions, SourceOptions

WRONG_NUMBERS = {
    "--max-new-tokens 0": {"max_new_tokens": 0},
    "--min-new-tokens -1": {"min_new_tokens": -1},
    "--min-new-tokens 40 is more than --max-new-tokens 30": {"min_new_tokens": 40},
    "--num-beams 0": {"num_beams": 0},
    "--no-repeat-ngram-size -1": {"no_repeat_ngram_size": -1},
    "--num-captions 0": {"num_captions": 0},
    "--top-k 0": {"top_k": 0, "temperature": 1.0},
    "--seed -1": {"seed": -1},
    "--temperature 0": {"temperature": 0},
    "--temperature inf": {"temperature": math.inf},
    "--temperature nan": {"temperature": math.nan},
    "--top-p 0": {"top_p": 0, "temperature": 1.0},
    "--top-p 1.5": {"top_p": 1.5, "temperature": 1.0},
    "--top-p nan": {"top_p": math.nan, "temperature": 1.0},
    "--repetition-penalty 0": {"repetition_penalty": 0},
    "--repetition-penalty nan": {"repetition_penalty": math.nan},
    "--length-penalty nan": {"length_penalty": math.nan, "num_beams": 3},
    "--length-penalty inf": {"length_penalty": math.inf, "num_beams": 3},
}

WRONG_COMBINATIONS = {
    "--top-p 0.9 has no effect without sampling": {"top_p": 0.9},
    "--top-k 5 has no effect without sampling": {"top_k": 5},
    "--temperature 1.0 and --num-beams 3 exclude each other": {"temperature": 1.0, "num_beams": 3},
    "--length-penalty 2.0 has no effect without beams": {"length_penalty": 2.0},
    "--num-captions 2 needs --temperature, or --num-beams of at least 2": {"num_captions": 2},
    "--num-captions 4 needs": {"num_captions": 4, "num_beams": 3},
}


@pytest.mark.parametrize(("message", "options"), (WRONG_NUMBERS | WRONG_COMBINATIONS).items())
def test_a_wrong_value_or_combination_is_refused_with_its_flag(message, options):
    with pytest.raises(UsageError) as caught:
        GenerateOptions(**options)
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "num_captions": 5},
        {"num_beams": 5, "length_penalty": -1.0, "num_captions": 5},
        {"min_new_tokens": 30, "max_new_tokens": 30},
        {"top_p": 1, "temperature": 1},
    ],
)
def test_a_right_combination_is_taken(options):
    given = dataclasses.asdict(GenerateOptions(**options))
    assert {name: given[name] for name in options} == options


def test_text_is_sampled_when_a_temperature_is_given():
    assert GenerateOptions(temperature=0.5).sampling
    assert not GenerateOptions(num_beams=3).sampling


def test_an_empty_prefix_is_refused_and_spaces_around_one_do_not_matter():
    assert TextOptions(strip=(" a photo of ", "a")).strip == ("a photo of", "a")
    for empty in ("", " "):
        with pytest.raises(UsageError, match="strip is empty"):
            TextOptions(strip=("a", empty))


def test_no_input_is_refused():
    with pytest.raises(UsageError, match="no INPUT given"):
        SourceOptions()


@pytest.mark.parametrize(
    "options",
    [{"inputs": ("-", "-")}, {"files_from": ("-", "-")}, {"inputs": ("-",), "files_from": ("-",)}],
)
def test_standard_input_cannot_be_read_twice(options):
    with pytest.raises(UsageError, match="more than once"):
        SourceOptions(**options)


def test_standard_input_and_a_list_go_together():
    assert SourceOptions(inputs=("-",), files_from=("list.txt",)).inputs == ("-",)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(limit):
    with pytest.raises(UsageError, match=r"limit .*: must be 1 or more"):
        SourceOptions(inputs=("imgs",), limit=limit)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_a_device_that_can_be_is_taken(device):
    assert ModelOptions(device=device).device == device


@pytest.mark.parametrize(
    "device", ["", "gpu", "cpu:0", "cpu:", "auto:1", "cuda:", "cuda:-1", "cuda:²", "cuda:0 ", "mps"]
)
def test_a_device_that_cannot_be_is_refused(device):
    with pytest.raises(UsageError, match="must be auto, cpu, cuda or cuda:N"):
        ModelOptions(device=device)


def test_an_unknown_dtype_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"dtype int4: must be one of auto, float32, bfloat16, float16"):
        ModelOptions(dtype="int4")


@pytest.mark.parametrize("kind", ["int8", "nf4", "int8-dynamic", "fp8"])
def test_every_way_to_quantize_is_taken(kind):
    assert ModelOptions(quantize=kind).quantize == kind


@pytest.mark.parametrize("kind", ["", "int4", "INT8", "fp8 "])
def test_another_way_to_quantize_is_refused_with_the_known_ones(kind):
    with pytest.raises(UsageError, match=r"must be one of int8, nf4, int8-dynamic, fp8\."):
        ModelOptions(quantize=kind)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fp8_is_made_of_bfloat16(dtype):
    with pytest.raises(UsageError, match=f"quantize fp8 and dtype {dtype} exclude each other"):
        ModelOptions(quantize="fp8", dtype=dtype)
    assert ModelOptions(quantize="fp8", dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("device", ["cpu", "cuda:0", "cuda:1"])
def test_a_device_map_is_for_all_gpus(device):
    with pytest.raises(UsageError, match=f"device_map balanced and device {device} exclude each other"):
        ModelOptions(device_map="balanced", device=device)
    assert ModelOptions(device_map="balanced", device="cuda").device_map == "balanced"


def test_an_unknown_device_map_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"device_map cpu: must be one of auto, balanced, sequential\."):
        ModelOptions(device_map="cpu")


def test_random_weights_are_not_spread_over_gpus():
    with pytest.raises(UsageError, match="device_map auto and random weights exclude each other"):
        ModelOptions(device_map="auto", random_weights=True)


def test_an_empty_model_name_is_refused():
    with pytest.raises(UsageError, match="model is empty"):
        ModelOptions(name="")


def test_a_negative_number_of_threads_is_refused():
    with pytest.raises(UsageError, match="num_threads -1"):
        DecodeOptions(num_threads=-1)


def test_threads_follow_the_cores_up_to_sixteen(monkeypatch):
    seen = {}
    for cores in (None, 2, 64):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        seen[cores] = DecodeOptions().threads
    assert seen == {None: 1, 2: 2, 64: 16}
    assert DecodeOptions(num_threads=40).threads == 40


def test_whole_numbers_are_taken_for_what_they_mean():
    options = GenerateOptions(temperature=1, repetition_penalty=2, top_p=1)
    assert [type(value) for value in (options.temperature, options.repetition_penalty, options.top_p)] == [float] * 3
    assert type(GenerateOptions(num_beams=2, length_penalty=-1).length_penalty) is float


def test_a_batch_size_below_one_is_refused():
    hint = r"batch_size 0: must be 1 or more. Leave it out to let blip2cap measure a size that fits\."
    with pytest.raises(UsageError, match=hint):
        BatchOptions(batch_size=0)


def test_the_batch_size_is_measured_unless_given():
    given, measured = BatchOptions(batch_size=7).images(), BatchOptions().images()
    assert (given.size, given.most, given.settled) == (7, 7, True)
    assert measured.size < measured.most
    assert not measured.settled


@pytest.mark.parametrize(
    ("out", "kind"),
    [
        ("captions.jsonl", Kind.JOURNAL),
        ("folder/captions.PARQUET", Kind.PARQUET),
        ("parts/", Kind.PARTS),
        ("s3://bucket/parts/", Kind.PARTS),
        ("existing", Kind.PARTS),
        ("existing.jsonl", Kind.JOURNAL),
        ("-", Kind.STREAM),
    ],
)
def test_the_name_of_an_output_tells_its_kind(tmp_path, monkeypatch, out, kind):
    monkeypatch.chdir(tmp_path)
    for name in ("existing", "existing.jsonl"):
        (tmp_path / name).mkdir()
    assert OutputOptions(out=out).kind is kind


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "captions.txt"}, r"--out captions.txt: must end in .jsonl or .parquet, or in / for a folder of parts"),
        ({"out": ""}, "--out : must end in .jsonl"),
        ({"out": "s3://bucket/parts"}, "--out s3://bucket/parts: a remote output is a folder of parts"),
        ({"out": "parts/", "overwrite": True}, "--overwrite and --out parts/ exclude each other: a folder is never"),
        ({"out": "-", "overwrite": True}, "--overwrite and --out - exclude each other"),
        ({"out": "-", "retry_failed": True}, "--retry-failed and --out - exclude each other"),
        ({"overwrite": True, "retry_failed": True}, "--overwrite and --retry-failed exclude each other"),
        ({"part_size": 2}, "--part-size and --shard are for a folder of parts"),
        ({"shard": "1/2", "out": "-"}, "--part-size and --shard are for a folder of parts"),
        ({"part_size": 0, "out": "parts/"}, "--part-size 0: must be 1 or more. Leave it out for parts of 10000 inputs"),
        *(
            ({"shard": shard, "out": "parts/"}, f"--shard {shard}: must be I/N")
            for shard in ("0/2", "3/2", "1", "a/b", "-1/2", "1/2/3", "")
        ),
    ],
)
def test_a_wrong_output_is_refused_with_the_reason(options, message):
    with pytest.raises(UsageError) as caught:
        OutputOptions(**options)
    assert caught.value.message.startswith(message)


def test_shards_share_the_parts_and_together_take_all():
    taken = [[index for index in range(7) if OutputOptions(out="p/", shard=f"{i}/3").takes(index)] for i in (1, 2, 3)]
    assert taken == [[0, 3, 6], [1, 4], [2, 5]]
    assert OutputOptions(out="p/").takes(5)


@pytest.mark.parametrize(
    "options",
    [SourceOptions(inputs=("a",)), DecodeOptions(), ModelOptions(), BatchOptions(), OutputOptions(), TextOptions()],
)
def test_options_cannot_be_changed(options):
    name = dataclasses.fields(options)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options, name, None)
