"""Images with their captions in tar files, as webdataset reads them.

The members of one sample follow each other and share its key: their name up to the first dot after the last slash.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from blip2cap.errors import UsageError
from blip2cap.outputs.export.images import suffix_of
from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.options import SHARD_SIZE
from blip2cap.outputs.export.reasons import MISSING_IMAGE, OUTSIDE
from blip2cap.outputs.export.writer import Writer
from blip2cap.outputs.files import replacing_stream


class Shards(Writer):
    """`--out` is a folder of 00000.tar, 00001.tar and so on; images are copied unchanged, also from archives."""

    def check(self) -> None:
        """Refuse a folder with archives in it: shards of two exports would be read as one."""
        if os.path.lexists(self.out) and not os.path.isdir(self.out):
            raise UsageError(f"--out {self.out}: no folder. webdataset is a folder of .tar files.")
        if os.path.isdir(self.out) and any(name.endswith(".tar") for name in os.listdir(self.out)):
            raise UsageError(f"--out {self.out}: holds .tar files already. Use another folder, or remove them.")

    def output_name(self, item: Item) -> str:
        """Return the key: the path without its suffix; a dot that would end the key early becomes `%2E`."""
        folder, base = os.path.split(os.path.splitext(item.path_in_out)[0])
        return os.path.join(folder, base.replace(".", "%2E"))

    def skip_reason(self, item: Item) -> str:
        """Leave out items without an image or a key."""
        if not self.images.has(item):
            return MISSING_IMAGE
        return "" if item.path_in_out else OUTSIDE

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder; a shard is opened with its first sample."""
        os.makedirs(self.out, exist_ok=True)
        self._num_shards = self._num_samples = 0
        with ExitStack() as self._shard:
            yield

    def write(self, item: Item) -> str:
        """Write one sample: image, text, and the row as JSON."""
        image = self.images.read(item)
        path_of_image = item.path_in_out if item.member else item.image_path
        suffix = os.path.splitext(path_of_image)[1].lower()
        if item.member:
            suffix = suffix_of(path_of_image, image) or suffix
        if self._num_samples == 0:
            path = Path(self.out, f"{self._num_shards:05}.tar")
            stream = self._shard.enter_context(replacing_stream(self.files, path))
            tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115  `_shard` closes it
            self._tar = self._shard.enter_context(tar)
        key = self.output_name(item)
        self._add(key + (".image" if suffix in ("", ".txt", ".json") else suffix), image)
        self._add(f"{key}.txt", item.lines.encode())
        self._add(f"{key}.json", json.dumps(item.row.as_dict()).encode())
        self._num_samples += 1
        if self._num_samples == (self.options.shard_size or SHARD_SIZE):
            self._shard.close()
            self._num_shards, self._num_samples = self._num_shards + 1, 0
        return ""

    def _add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)  # without owner and time: equal samples make equal archives
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
