import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip2cap.errors import UsageError
from blip2cap.prompts import Template


@pytest.mark.parametrize(
    ("text", "file_name", "filled"),
    [
        ("a photo of", "pets/cat.jpg", "a photo of"),
        ("{stem}", "pets/cat.jpg", "cat"),
        ("{folder}: {stem}", "a/pets/cat.jpg", "pets: cat"),
        ("{file_name}", "a/pets/cat.jpg", "a/pets/cat.jpg"),
        ("{folder}", "cat.jpg", ""),
        ("{stem}", "cat.tar.gz", "cat.tar"),
        ("{stem} and {stem}", "cat.jpg", "cat and cat"),
        ("{{stem}}", "pets/cat.jpg", "{cat}"),
        ("", "cat.jpg", ""),
    ],
)
def test_fields_become_parts_of_the_name(text, file_name, filled):
    assert Template(text).fill(file_name) == filled


@pytest.mark.parametrize("text", ["100% %s %(stem)s", "$stem", "a } b { c", "\\{", "}{", "{", "\\n"])
def test_any_other_text_is_taken_as_it_stands(text):
    assert Template(text).fill("pets/cat.jpg") == text


@pytest.mark.parametrize(
    "field",
    [
        "{0.__class__}",
        "{stem.__class__}",
        "{:>999999999}",
        "{stem:>999999999}",
        "{stem!r}",
        "{0}",
        "{}",
        "{ stem }",
        "{x}",
    ],
)
def test_an_unknown_field_is_refused_with_the_known_ones(field):
    with pytest.raises(UsageError) as caught:
        Template(f"a photo of {field}")
    assert caught.value.message == (
        f'--prompt "a photo of {field}": unknown field {field}. Known fields: {{stem}} {{folder}} {{file_name}}'
    )


@pytest.mark.parametrize(
    "name", ["{stem}", "{file_name}", "{folder}", "{question}", "{0.__class__}", "%s", "\\1", "\\g<1>"]
)
def test_values_are_never_searched_for_fields(name):
    assert Template("{stem} in {folder}").fill(f"{name}/{name}.jpg") == f"{name} in {name}"
    assert Template("{stem}: {question}", question=True).fill(f"{name}.jpg", f"is {name}?") == f"{name}: is {name}?"


def test_control_characters_in_names_become_spaces():
    assert Template("{stem}|{folder}").fill("my\x1b[31m\npets/the\r\ncat\x9b.jpg") == "the cat |my [31m pets"


def test_a_question_template_needs_its_question():
    with pytest.raises(UsageError, match=r'template "Answer:": has no \{question\}'):
        Template("Answer:", option="--template", question=True)


def test_a_question_is_no_field_of_a_caption_prompt():
    with pytest.raises(UsageError, match=r"unknown field \{question\}"):
        Template("{question}")


def test_the_error_names_the_option_that_was_given():
    with pytest.raises(UsageError, match=r'^template "\{x\}"'):
        Template("{x}", option="--template", question=True)


@given(st.text(), st.text(st.characters(exclude_characters="/\0"), min_size=1))
@settings(deadline=None, max_examples=200)
def test_no_text_makes_anything_but_a_prompt_or_a_usage_error(text, name):
    try:
        template = Template(text)
    except UsageError:
        return
    assert len(template.fill(name)) <= len(text) * (len(name) + 1)
