"""Detects truncated files: by the length that they state, or a missing end mark.

Used after decoding has failed, to tell an interrupted upload or copy from damage. A file whose stated length is damaged
may look truncated.
"""

from __future__ import annotations

import struct

_BOXES_OF_JPEG2000 = b"\0\0\0\x0cjP  \r\n\x87\n"
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
"""Type of a TIFF tag -> length of one value in bytes."""
_MIN_BYTES = 12
"""Bytes that identify every format; a shorter file is not recognised as an image."""


def is_truncated(data: bytes) -> bool:
    """Return whether a file ends before its own end mark or stated length."""
    if len(data) < _MIN_BYTES:
        return False
    if data.startswith(b"\xff\xd8\xff"):
        return _is_truncated_jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _is_truncated_png(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return 8 + int.from_bytes(data[4:8], "little") > len(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return not data.rstrip(b"\0").endswith(b";")
    if data.startswith(b"BM"):
        return int.from_bytes(data[2:6], "little") > len(data)
    if data.startswith((b"II*\0", b"MM\0*")):
        return _is_truncated_tiff(data, "<" if data.startswith(b"II") else ">")
    if data.startswith(b"\xff\x4f\xff\x51"):
        return not _ends_codestream(data)
    if data.startswith(_BOXES_OF_JPEG2000):
        return _is_truncated_in_a_box(data) or not _ends_codestream(data)
    return data[4:8] == b"ftyp" and _is_truncated_in_a_box(data)


def _is_truncated_jpeg(data: bytes) -> bool:
    """Walk the segments up to the pixels, then search for the end of the image."""
    at = 2
    while at + 4 <= len(data):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker >> 8 != 0xFF:
            return False  # damaged: no segment begins here
        if marker == 0xFFFF:
            at += 1  # padding
            continue
        at += 2 + length
        if marker == 0xFFDA:
            return data.find(b"\xff\xd9", at) < 0
    return True


def _is_truncated_png(data: bytes) -> bool:
    at = 8
    while at + 12 <= len(data):
        if data[at + 4 : at + 8] == b"IEND":
            return False
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return True


def _is_truncated_tiff(data: bytes, order: str) -> bool:
    """Check that the first directory and all its values are present; libtiff checks the pixels."""
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    if at + 2 > len(data):
        return True
    (num_entries,) = struct.unpack_from(f"{order}H", data, at)
    if at + 2 + 12 * num_entries + 4 > len(data):
        return True
    for entry in range(at + 2, at + 2 + 12 * num_entries, 12):
        kind, count, where = struct.unpack_from(f"{order}xxHII", data, entry)
        num_bytes = _TIFF_BYTES.get(kind, 0) * count
        if num_bytes > 4 and where + num_bytes > len(data):  # shorter values are stored in the entry
            return True
    return False


def _is_truncated_in_a_box(data: bytes) -> bool:
    """Walk the top-level boxes of an AVIF, HEIC or JP2 file."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length == 0:
            return False  # it extends to the end of the file
        if length < 8:
            return False  # damaged
        at += length
    return at != len(data)


def _ends_codestream(data: bytes) -> bool:
    return data.rstrip(b"\0").endswith(b"\xff\xd9")
