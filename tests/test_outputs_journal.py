import io

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip2cap.errors import OutputError, OutputRefusedError
from blip2cap.outputs.existing_rows import manifest_path, read_journal
from blip2cap.outputs.journal import JournalSink
from blip2cap.outputs.stream import StreamSink
from blip2cap.records import ImageRef
from tests.rows import SETTINGS, columns_of, failed, left_in, row, text_row, write


@pytest.fixture
def path(tmp_path):
    return tmp_path / "captions.jsonl"


def test_rows_come_back_as_they_were_written(path):
    rows = [row(1), failed(2), row(3, text="кот 🐈")]
    write(path, *rows)
    assert columns_of(path) == [one.as_dict() for one in rows]


def test_the_output_and_its_manifest_are_all_that_is_left(path):
    write(path, row(1))
    assert left_in(path.parent) == ["captions.jsonl", "captions.jsonl.run.json"]


def test_a_resumed_run_knows_what_is_finished_and_appends(path):
    write(path, row(1), failed(2))
    before = path.read_bytes()
    sink = JournalSink(path)
    assert sink.finished == {row(1).key, row(2).key}
    assert sink.num_failed == 1
    sink.begin(SETTINGS)
    sink.write([row(3)])
    sink.close()
    assert path.read_bytes() == before + row(3).as_json()


def test_answers_are_found_again_by_image_and_question(path):
    write(path, row(1, question="what?"), row(1, question="where?"))
    assert read_journal(path, label="question").finished == {
        row(1, question="what?").key,
        row(1, question="where?").key,
    }


def test_a_name_that_is_not_utf8_is_found_again(path):
    ref = ImageRef(path="x", name="caf\udce9.jpg")
    one = text_row(file_name=ref.file_name, file_name_b64=ref.file_name_b64)
    write(path, one)
    assert read_journal(path).finished == {one.key}


def test_every_row_has_the_same_keys_and_none_is_null(path):
    write(path, row(1), failed(2), row(3, finish_reason="length", num_tokens=30))
    first, *others = columns_of(path)
    assert all(list(other) == list(first) for other in others)
    assert all(type(other[name]) is type(first[name]) for other in others for name in first)
    assert None not in [value for columns in (first, *others) for value in columns.values()]


def test_a_long_journal_is_read_over_its_blocks(path, monkeypatch):
    monkeypatch.setattr("blip2cap.outputs.files._BLOCK", 37)
    rows = [row(number, text="x" * (number % 50)) for number in range(100)]
    write(path, *rows)
    journal = read_journal(path)
    assert journal.finished == {one.key for one in rows}
    assert (journal.num_bytes, journal.torn_bytes) == (path.stat().st_size, 0)


def test_blanks_around_a_row_do_no_harm_and_two_rows_on_a_line_do(path):
    one, two = row(1).as_json()[:-1], row(2).as_json()[:-1]
    path.write_bytes(b"  " + one + b" \r\n")
    assert read_journal(path).finished == {row(1).key}
    path.write_bytes(one + b"\n" + one + two + b"\n")
    with pytest.raises(OutputRefusedError, match=r"captions.jsonl:2 is damaged"):
        read_journal(path)


def test_no_file_holds_nothing(path):
    journal = read_journal(path)
    assert (len(journal.finished), journal.num_failed, journal.num_bytes) == (0, 0, 0)
    assert not path.exists()


@pytest.mark.parametrize("text", ["a\u2028b", "a\u2029b", "a\x85b", "a\nb", "a\r\nb", "a\x0bb\x0cc\x1cd", '"\\', "\0"])
def test_line_ends_inside_a_text_do_not_end_its_line(path, text):
    write(path, row(1, text=text), row(2))
    content = path.read_bytes()
    assert len(content.decode().splitlines()) == len(content.split(b"\n")) - 1 == 2
    assert columns_of(path)[0]["text"] == text
    assert len(read_journal(path).finished) == 2


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_texts_come_back(path, texts):
    rows = [row(number, text=text, question=text) for number, text in enumerate(texts)]
    write(path, *rows, overwrite=True)
    assert columns_of(path) == [one.as_dict() for one in rows]
    assert read_journal(path, label="question").finished == {one.key for one in rows}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompt": "a photo of"}, 'prompt was none, now "a photo of"'),
        ({"model": "other"}, 'model was "tiny", now "other"'),
        ({"num_beams": 3}, "num_beams was none, now 3"),
    ],
)
def test_a_run_with_other_settings_is_refused_and_changes_nothing(path, changed, said):
    write(path, row(1))
    before = path.read_bytes()
    with pytest.raises(OutputRefusedError, match=said):
        write(path, row(2), made_with=SETTINGS | changed)
    assert path.read_bytes() == before
    write(path, row(2))


def test_settings_may_change_where_no_row_was_made(path):
    write(path)
    write(path, row(1), made_with=SETTINGS | {"prompt": "a photo of"})
    with pytest.raises(OutputRefusedError, match=r'prompt was "a photo of", now none'):
        write(path, row(2))


@pytest.mark.parametrize("content", [b'{"my": "file"}\n', b"my notes\n", b"no newline", b"\n", b"\0" * 100])
def test_a_file_that_is_not_ours_is_refused_and_kept(path, content):
    path.write_bytes(content)
    with pytest.raises(OutputRefusedError):
        JournalSink(path)
    assert path.read_bytes() == content
    assert left_in(path.parent) == [path.name]


@pytest.mark.parametrize("torn", [0, 10])
def test_rows_without_their_manifest_are_refused(path, torn):
    write(path, row(1), row(2))
    manifest_path(path).unlink()
    if torn:
        path.write_bytes(path.read_bytes()[:torn])
    with pytest.raises(OutputRefusedError, match=r"its manifest captions.jsonl.run.json does not"):
        JournalSink(path)


def test_a_damaged_manifest_is_refused(path):
    write(path, row(1))
    manifest_path(path).write_text("{")
    with pytest.raises(OutputRefusedError, match="is damaged"):
        JournalSink(path)
    JournalSink(path, overwrite=True).close()


def test_overwriting_begins_anew_with_other_settings(path):
    write(path, row(1), row(2))
    write(path, row(3), overwrite=True, made_with={"model": "other"})
    assert columns_of(path) == [row(3).as_dict()]
    write(path, row(4), made_with={"model": "other"})


def test_overwriting_takes_a_file_that_is_not_ours(path):
    path.write_bytes(b"my notes")
    write(path, row(1), overwrite=True)
    assert columns_of(path) == [row(1).as_dict()]


def test_overwriting_keeps_the_old_rows_until_it_begins(path):
    write(path, row(1))
    JournalSink(path, overwrite=True).close()
    assert columns_of(path) == [row(1).as_dict()]
    write(path, row(2))


def test_a_stream_takes_rows_and_remembers_nothing():
    stream = io.BytesIO()
    sink = StreamSink(stream)
    sink.begin(SETTINGS)
    sink.write([row(1), failed(2)])
    sink.close()
    assert stream.getvalue() == row(1).as_json() + failed(2).as_json()
    assert (sink.finished, sink.num_failed) == (frozenset(), 0)


class BrokenStream(io.BytesIO):
    """A stream that cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> None:
        raise self.error


def test_a_stream_that_cannot_be_written_is_an_output_error():
    with pytest.raises(OutputError, match=r"standard output cannot be written: .*No space left"):
        StreamSink(BrokenStream(OSError(28, "No space left on device"))).write([row(1)])


def test_a_reader_that_has_gone_is_no_output_error():
    with pytest.raises(BrokenPipeError):
        StreamSink(BrokenStream(BrokenPipeError(32, "Broken pipe"))).write([row(1)])
