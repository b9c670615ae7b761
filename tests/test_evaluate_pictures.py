"""The images of rows: files, and members of archives, found by their names."""

from __future__ import annotations

from pathlib import Path

from blip2cap.evaluate.pictures import Pictures
from tests.archives import make_tar


def test_files_and_members_are_found_below_the_folder_of_the_run(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", {"x.png": b"data"})
    pictures = Pictures(str(tmp_path))
    member = pictures.ref("a.tar#x.png")
    assert (member.path, member.name, member.num_bytes, member.error) == (str(tmp_path / "a.tar"), "a.tar#x.png", 4, "")
    assert pictures.ref("a.tar#no.png").error == "vanished"
    assert pictures.ref("sub/b.png").path == str(tmp_path / "sub" / "b.png")


def test_a_file_with_the_name_of_a_member_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar#x.png").write_bytes(b"data")
    assert Pictures(str(tmp_path)).ref("a.tar#x.png").path == str(tmp_path / "a.tar#x.png")


def test_urls_are_as_they_are(tmp_path: Path) -> None:
    assert Pictures(str(tmp_path)).ref("https://example.org/a.png").path == "https://example.org/a.png"
