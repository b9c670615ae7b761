import ast
import struct
from pathlib import Path

import pytest
from PIL import Image, UnidentifiedImageError

import blip2cap
from blip2cap import errors
from blip2cap.decode.image import decode
from blip2cap.errors import (
    Blip2CapError,
    ClusterError,
    ImageError,
    InputError,
    ModelError,
    OutputError,
    OutputGoneError,
    OutputLockedError,
    OutputRefusedError,
    ServerError,
    UnreachableError,
    UsageError,
    WorkerError,
)
from blip2cap.flags import flags_of
from blip2cap.generate_options import GenerateOptions, TextOptions
from blip2cap.options import BatchOptions, DecodeOptions, OutputOptions
from blip2cap.records import FAILURES

EXIT_CODES = {
    Blip2CapError: 1,
    ClusterError: 1,
    WorkerError: 1,
    UsageError: 2,
    InputError: 2,
    ModelError: 4,
    ServerError: 4,
    OutputRefusedError: 5,
    OutputLockedError: 5,
    OutputError: 6,
    OutputGoneError: 6,
    UnreachableError: 6,
}

PARENTS = {
    UsageError: Blip2CapError,
    InputError: UsageError,
    ClusterError: Blip2CapError,
    WorkerError: Blip2CapError,
    ModelError: Blip2CapError,
    ServerError: ModelError,
    OutputRefusedError: Blip2CapError,
    OutputLockedError: OutputRefusedError,
    OutputError: Blip2CapError,
    OutputGoneError: OutputError,
    UnreachableError: Blip2CapError,
    ImageError: Blip2CapError,
}

PILLOW_ERRORS = {
    UnidentifiedImageError("cannot identify image file"): "not_an_image",
    Image.DecompressionBombError("could be decompression bomb"): "too_large",
    NotImplementedError("no such compression"): "unsupported",
    EOFError(): "truncated",
    OSError("image file is truncated (3 bytes not processed)"): "truncated",
    RuntimeError("Failed to decode frame 0: Truncated data"): "truncated",
    OSError("broken data stream when reading image file"): "corrupt",
    OSError("decoder jpeg2k not available"): "corrupt",
    RuntimeError("Failed to decode image"): "corrupt",
    ValueError("bad value"): "corrupt",
    SyntaxError("broken PNG file"): "corrupt",
    IndexError("list index out of range"): "corrupt",
    KeyError("MPO"): "corrupt",
    TypeError("bad type"): "corrupt",
    struct.error("unpack requires a buffer of 4 bytes"): "corrupt",
}


@pytest.mark.parametrize(("error", "code"), EXIT_CODES.items())
def test_every_error_knows_its_exit_code(error, code):
    assert error.exit_code == code


@pytest.mark.parametrize(("error", "parent"), PARENTS.items())
def test_every_error_hangs_in_one_tree(error, parent):
    assert error.__bases__ == (parent,)


def test_the_tree_in_the_docstring_is_the_tree_in_the_code():
    drawn = {}
    for line in (errors.__doc__ or "").splitlines():
        words = line.replace("|", " ").replace("`", " ").replace("--", " ").split()
        if words and words[0].endswith("Error"):
            drawn[words[0]] = words[1]
    classes = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type)}
    assert drawn.keys() == classes.keys()
    assert {name: drawn[name] for name in drawn if drawn[name].isdigit()} == {
        cls.__name__: str(code) for cls, code in EXIT_CODES.items() if cls is not Blip2CapError
    }


def test_an_image_error_says_its_code_and_what_happened():
    error = ImageError("corrupt", "broken data stream")
    assert (error.code, error.detail, str(error)) == ("corrupt", "broken data stream", "corrupt: broken data stream")


def test_options_have_their_names_of_python_in_messages_there():
    error = UsageError("--top-k 5 (--num-beams) has no effect. Add --temperature, or `--top-p`; a--b -- stays.")
    assert str(error) == "top_k 5 (num_beams) has no effect. Add temperature, or `top_p`; a--b -- stays."
    assert error.message.startswith("--top-k 5 ")
    for each in (DecodeOptions, GenerateOptions, TextOptions, BatchOptions, OutputOptions):
        for field, its_flag in flags_of(each):
            assert str(UsageError(f"--{its_flag.long_name}: x")) == f"{field.name}: x"


@pytest.mark.parametrize(("error", "code"), PILLOW_ERRORS.items(), ids=repr)
def test_every_error_of_pillow_becomes_a_code_of_the_closed_set(error, code, monkeypatch):
    def broken_open(*args, **kwargs):
        raise error

    monkeypatch.setattr(Image, "open", broken_open)
    with pytest.raises(ImageError) as caught:
        decode(b"some bytes", 16, DecodeOptions())
    assert caught.value.code == code
    assert caught.value.code in FAILURES
    assert caught.value.__cause__ is error


def test_running_out_of_memory_is_told_from_a_bad_image(monkeypatch):
    def broken_open(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(Image, "open", broken_open)
    with pytest.raises(MemoryError):
        decode(b"some bytes", 16, DecodeOptions())


def raised_codes(source: str) -> set[str]:
    """Find every code that a source text gives to ImageError."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    codes = [call.args[0] for call in calls if isinstance(call.func, ast.Name) and call.func.id == "ImageError"]
    return {code.value for code in codes if isinstance(code, ast.Constant) and isinstance(code.value, str)}


def test_no_module_makes_up_a_code_of_its_own():
    package = Path(blip2cap.__file__).parent
    for path in package.rglob("*.py"):
        assert raised_codes(path.read_text()) <= FAILURES, path


def test_a_code_that_was_made_up_is_found():
    assert raised_codes('raise ImageError("too_ugly", "no")') == {"too_ugly"}
