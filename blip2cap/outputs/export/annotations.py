"""What annotation tools and evaluations read: COCO and Label Studio."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from typing import IO, Any

from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.options import ExportOptions
from blip2cap.outputs.export.writer import FileWriter


class JsonList:
    """Writes a list of JSON objects, one a line, as they come."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._is_empty = True

    def add(self, entry: dict[str, Any]) -> None:
        """Write one entry."""
        self._file.write((b"[\n" if self._is_empty else b",\n") + json.dumps(entry).encode())
        self._is_empty = False

    def finish(self) -> None:
        """Close the list."""
        self._file.write(b"[]" if self._is_empty else b"\n]")


class Coco(FileWriter):
    """Captions with the list of images; with --results, what an evaluation reads. Answers are VQA results.

    An image's id, and a question's, is the number of its row in the results, from 1.
    """

    has_keys = True

    def key(self, item: Item) -> str:
        """Name the image: it has one id, and in answers one for each question."""
        return item.row.key

    def open(self) -> None:
        """Begin the file, and one for the second list, which waits until the first is whole."""
        folder = os.path.dirname(os.path.abspath(self.out))
        self._annotations_file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by `close`
        super().open()
        self._annotations = JsonList(self._annotations_file)
        self._images: JsonList | None = None

    def write(self, item: Item) -> str:
        """Write one image with its caption, or one answer."""
        row = item.row
        if row.question is not None:
            self._annotations.add({"question_id": item.number, "answer": item.text})
        elif self.options.results_only:
            self._annotations.add({"image_id": item.number, "caption": item.text})
        else:
            if self._images is None:
                self.file.write(b'{"images": ')
                self._images = JsonList(self.file)
            self._images.add({"id": item.number, "file_name": row.file_name, "width": row.width, "height": row.height})
            self._annotations.add({"id": item.number, "image_id": item.number, "caption": item.text})
        return ""

    def finish(self) -> None:
        """Put the lists together."""
        self._annotations.finish()
        self._annotations_file.seek(0)
        if self._images is not None:
            self._images.finish()
            self.file.write(b', "annotations": ')
        shutil.copyfileobj(self._annotations_file, self.file)
        if self._images is not None:
            self.file.write(b"}")
        super().finish()

    def close(self) -> None:
        """Remove what has not been finished."""
        self._annotations_file.close()
        super().close()


class LabelStudio(FileWriter):
    """Tasks with our texts as predictions, for a labelling configuration with an image `image` and a text `caption`."""

    def __init__(self, options: ExportOptions, root: str, model: str) -> None:
        super().__init__(options, root)
        self.model = model

    def open(self) -> None:
        """Begin the list."""
        super().open()
        self._tasks = JsonList(self.file)

    def write(self, item: Item) -> str:
        """Write one task."""
        data = {"image": item.row.file_name}
        if item.row.question is not None:
            data["question"] = item.row.question
        result = {"from_name": "caption", "to_name": "image", "type": "textarea", "value": {"text": [item.text]}}
        self._tasks.add({"data": data, "predictions": [{"model_version": self.model, "result": [result]}]})
        return ""

    def finish(self) -> None:
        """Close the list."""
        self._tasks.finish()
        super().finish()
