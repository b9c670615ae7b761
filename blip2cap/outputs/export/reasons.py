"""The reasons for which an export leaves out rows."""

COLLISION = "collision"
EMPTY = "empty"
EXISTING = "existing"
IN_ARCHIVE = "in_archive"
MISSING_IMAGE = "missing_image"
NOT_TEXT = "not_text"
OUTSIDE = "outside"
UNNAMEABLE = "unnameable"
UNWRITABLE = "unwritable"

MEANINGS = {
    COLLISION: "another image would get the same name",
    IN_ARCHIVE: "its image is in an archive or a table; --out PATH extracts it",
    MISSING_IMAGE: "the image does not exist, or cannot be read",
    OUTSIDE: "it is not below the folder that names are relative to",
    UNNAMEABLE: "its name is not valid UTF-8, which the format requires",
    NOT_TEXT: "the existing file is not UTF-8 text",
    UNWRITABLE: "its file cannot be written",
}
"""Reasons that lead to exit code 3, with their meaning: a caption that was asked for is not there."""
