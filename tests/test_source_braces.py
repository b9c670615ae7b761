import pytest

from blip2cap.errors import InputError
from blip2cap.source.braces import expand


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("s/{0..2}.tar", ["s/0.tar", "s/1.tar", "s/2.tar"]),
        ("{008..011}.tar", ["008.tar", "009.tar", "010.tar", "011.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{0..10..5}", ["{0..10..5}"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{00..01}", ["00", "01"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{11..9}", ["11", "10", "9"]),
        ("{2..00}", ["02", "01", "00"]),
        ("{a,b}.tar", ["a.tar", "b.tar"]),
        ("{a,}", ["a", ""]),
        ("{a,b}/{0..1}.tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("s3://x/{train,val}-{0..0}.tar", ["s3://x/train-0.tar", "s3://x/val-0.tar"]),
        ("{a}.jpg", ["{a}.jpg"]),
        ("{}", ["{}"]),
        ("{a..c}", ["{a..c}"]),
        ("{", ["{"]),
    ],
)
def test_braces_stand_for_names_as_in_a_shell(given, names):
    assert expand(given) == names


@pytest.mark.parametrize("given", ["{0..1000000}", "{0..9999999999999999999999}", "{0..999}{0..999}{0..1}"])
def test_too_many_names_are_refused_before_they_are_made(given):
    with pytest.raises(InputError, match="stands for more than 1,000,000 names"):
        expand(given)
