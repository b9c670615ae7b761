import json
from datetime import UTC, datetime

import pytest

from blip2cap import __version__
from blip2cap.errors import OutputRefusedError
from blip2cap.outputs.manifest import SCHEMA_VERSION, Manifest

SETTINGS = {
    "command": "caption",
    "model": "tiny",
    "prompt": "a photo of",
    "num_beams": 1,
    "temperature": None,
    "repetition_penalty": 1.1,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "captions.jsonl.run.json"


def refusal(made: dict[str, object], wanted: dict[str, object]) -> str:
    with pytest.raises(OutputRefusedError) as caught:
        Manifest(settings=made).check(wanted, "captions.jsonl")
    return caught.value.message


def test_what_was_written_is_read_back(path):
    Manifest(settings=SETTINGS).write(path)
    manifest = Manifest.read(path)
    assert manifest is not None
    assert manifest.settings == SETTINGS
    assert (manifest.schema_version, manifest.blip2cap_version) == (SCHEMA_VERSION, __version__)
    manifest.check(SETTINGS, "captions.jsonl")


def test_the_time_of_creation_is_utc_and_stays(path):
    Manifest(settings=SETTINGS).write(path)
    first = Manifest.read(path)
    assert first is not None
    created = datetime.fromisoformat(first.created)
    assert created.utcoffset() == UTC.utcoffset(None)
    assert abs((datetime.now(UTC) - created).total_seconds()) < 60
    first.write(path)
    assert Manifest.read(path) == first


def test_settings_in_any_script_are_read_back(path):
    settings = {"prompt": "фото\u2028🐈", "input_root": "/imgs/\\xff"}
    Manifest(settings=settings).write(path)
    manifest = Manifest.read(path)
    assert manifest is not None
    assert manifest.settings == settings


def test_no_manifest_is_none(path):
    assert Manifest.read(path) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"null", b"{}", b'{"settings": 3}', b'{"settings": null}', b"\xff\xfe", b'{"what": "?"}'],
)
def test_a_damaged_manifest_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(OutputRefusedError, match=r"captions.jsonl.run.json is damaged"):
        Manifest.read(path)


def test_a_manifest_that_cannot_be_read_is_refused(path):
    path.mkdir()
    with pytest.raises(OutputRefusedError, match=r"captions.jsonl.run.json"):
        Manifest.read(path)


def test_equal_settings_are_agreed_with():
    Manifest(settings=SETTINGS).check(dict(reversed(SETTINGS.items())), "captions.jsonl")


def test_a_setting_that_is_missing_equals_none():
    Manifest(settings={"model": "tiny"}).check({"model": "tiny", "temperature": None}, "captions.jsonl")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": "a picture of"}, '--prompt was "a photo of", now "a picture of"'),
        ({"prompt": ""}, '--prompt was "a photo of", now none'),
        ({"num_beams": 5}, "--num-beams was 1, now 5"),
        ({"temperature": 0.7}, "--temperature was none, now 0.7"),
        ({"repetition_penalty": 1.0}, "--repetition-penalty was 1.1, now 1.0"),
        ({"model_commit": "abc"}, 'the model\'s commit was none, now "abc"'),
        ({"input_root": "/more"}, 'the input root was none, now "/more"'),
        ({"command": "vqa"}, 'the command was "caption", now "vqa"'),
    ],
)
def test_a_difference_is_refused_with_its_flag_and_both_values(changed, said):
    message = refusal(SETTINGS, SETTINGS | changed)
    remedy = "Give those again, or use another --out."
    assert message == f"captions.jsonl was made with other settings: {said}. {remedy}"


def test_a_root_that_differs_may_be_that_of_a_folder_that_was_renamed():
    message = refusal(SETTINGS | {"input_root": "/old"}, SETTINGS | {"input_root": "/new"})
    assert message.endswith("or use another --out. If only the folder was renamed: --same-inputs.")


def test_rows_from_before_there_were_rules_for_texts_were_made_without():
    rules = {"loop_guard": False, "trim_sentence": False, "strip": []}
    Manifest(settings=SETTINGS).check(SETTINGS | rules, "captions.jsonl")
    Manifest(settings=SETTINGS | rules).check(SETTINGS, "captions.jsonl")
    message = refusal(SETTINGS, SETTINGS | {"loop_guard": True, "trim_sentence": True, "strip": ["a photo of"]})
    assert "--loop-guard was false, now true; --trim-sentence was false, now true" in message
    assert '--strip was none, now ["a photo of"]' in message


def test_every_difference_is_named():
    message = refusal(SETTINGS, SETTINGS | {"model": "other", "num_beams": 3})
    assert '--model was "tiny", now "other"; --num-beams was 1, now 3' in message


def test_a_setting_that_is_gone_is_a_difference():
    assert "--num-beams was 1, now none" in refusal(SETTINGS, {**SETTINGS, "num_beams": None})
    assert "--num-beams was 1, now none" in refusal(
        SETTINGS, {name: value for name, value in SETTINGS.items() if name != "num_beams"}
    )


def test_rows_of_another_schema_are_refused():
    with pytest.raises(OutputRefusedError, match=r"rows of schema 99, this blip2cap writes schema"):
        Manifest(settings=SETTINGS, schema_version=99).check(SETTINGS, "captions.jsonl")


def test_writing_replaces_the_old_manifest_and_leaves_nothing_beside_it(path):
    Manifest(settings={"model": "old"}).write(path)
    Manifest(settings={"model": "new"}).write(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert json.loads(path.read_text())["settings"] == {"model": "new"}


def test_a_cut_while_writing_leaves_the_old_manifest(path, monkeypatch):
    Manifest(settings={"model": "old"}).write(path)

    def power_cut(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", power_cut)
    with pytest.raises(KeyboardInterrupt):
        Manifest(settings={"model": "new"}).write(path)
    manifest = Manifest.read(path)
    assert manifest is not None
    assert manifest.settings == {"model": "old"}
