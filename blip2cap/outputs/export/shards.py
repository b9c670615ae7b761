"""Images with their captions in tar files, as webdataset reads them.

Members of one sample follow each other and share their name up to the first dot of its last part, which is the key.
"""

from __future__ import annotations

import io
import json
import os
import tarfile

from blip2cap.errors import UsageError
from blip2cap.outputs.export.atomic import WholeFile
from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.options import SHARD_SIZE
from blip2cap.outputs.export.writer import MISSING_IMAGE, OUTSIDE, Writer


def member_key(name: str) -> str:
    """Return the name of an image without its suffix; a dot that would end the key early becomes `%2E`."""
    folder, base = os.path.split(os.path.splitext(name)[0])
    return os.path.join(folder, base.replace(".", "%2E"))


class Shards(Writer):
    """`--out` is a folder of 00000.tar, 00001.tar and so on; images are copied as they are on the disk."""

    def check(self) -> None:
        """Refuse a folder with archives in it: shards of two exports would be read as one."""
        if os.path.lexists(self.out) and not os.path.isdir(self.out):
            raise UsageError(f"--out {self.out}: no folder. webdataset is a folder of .tar files.")
        if os.path.isdir(self.out) and any(name.endswith(".tar") for name in os.listdir(self.out)):
            raise UsageError(f"--out {self.out}: holds .tar files already. Use another folder, or remove them.")

    def key(self, item: Item) -> str:
        """Name the sample."""
        return member_key(item.landing) if item.landing else ""

    def reason(self, item: Item) -> str:
        """Leave out what has no image or no name."""
        if not item.has_image:
            return MISSING_IMAGE
        return "" if item.landing else OUTSIDE

    def open(self) -> None:
        """Make the folder; a shard is begun when there is a sample for it."""
        os.makedirs(self.out, exist_ok=True)
        self._num_shards = self._num_samples = 0
        self._whole: WholeFile | None = None

    def write(self, item: Item) -> str:
        """Write one sample: image, text, and the row as JSON."""
        try:
            with open(item.image, "rb") as file:
                image = file.read()
        except OSError:
            return MISSING_IMAGE  # it has gone since
        if self._whole is None:
            self._whole = WholeFile(os.path.join(self.out, f"{self._num_shards:05}.tar"))
            self._tar = tarfile.open(fileobj=self._whole.file, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115
        key, suffix = member_key(item.landing), os.path.splitext(item.image)[1].lower()
        self._add(key + (".image" if suffix in ("", ".txt", ".json") else suffix), image)
        self._add(f"{key}.txt", item.text.encode())
        self._add(f"{key}.json", json.dumps(item.row.as_dict()).encode())
        self._num_samples += 1
        if self._num_samples == (self.options.shard_size or SHARD_SIZE):
            self._end_shard()
        return ""

    def finish(self) -> None:
        """End the last shard."""
        self._end_shard()

    def close(self) -> None:
        """Remove the shard that has not been finished."""
        if self._whole is not None:
            self._whole.discard()

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # of nobody, at no time: equal samples make equal archives
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def _end_shard(self) -> None:
        if self._whole is not None:
            self._tar.close()
            self._whole.commit()
            self._whole = None
            self._num_shards += 1
            self._num_samples = 0
