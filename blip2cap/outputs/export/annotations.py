"""Formats of annotation tools and evaluations: COCO and Label Studio."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import quote

from blip2cap.outputs.export.item import Item
from blip2cap.outputs.export.writer import FileWriter
from blip2cap.outputs.read import image_name


class JsonList:
    """Writes a list of JSON objects, one a line, as they are added."""

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
    """Captions with the list of images; with --results, the results format of evaluations. Answers are VQA results.

    The id of an image, or of a question, is the number of its row in the results, from 1. So is that of a caption, but
    where rows have several, captions are numbered by themselves.
    """

    unique_names = True

    def output_name(self, item: Item) -> str:
        """Return the key of the row: an image has one id, or, in answers, one for each question."""
        return item.row.key

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open the file, and a temporary one for the list of annotations, which follows the list of images."""
        folder = None if self.options.out == "-" else os.path.dirname(os.path.abspath(self.out))
        self._num_captions = 0
        with super().writing(), tempfile.TemporaryFile(dir=folder) as annotations:
            self._annotations = JsonList(annotations)
            self._images: JsonList | None = None
            yield
            self._annotations.finish()
            annotations.seek(0)
            if self._images is not None:
                self._images.finish()
                self.file.write(b', "annotations": ')
            shutil.copyfileobj(annotations, self.file)
            if self._images is not None:
                self.file.write(b"}")

    def write(self, item: Item) -> str:
        """Write one image with its captions, or one answer."""
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
            for text in item.texts:
                self._num_captions += 1
                number = item.number if row.texts is None else self._num_captions
                self._annotations.add({"id": number, "image_id": item.number, "caption": text})
        return ""


class LabelStudio(FileWriter):
    """Tasks with the texts as predictions, for a labelling configuration with an image `image` and a text `caption`."""

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Open the list."""
        self._model = str(self.manifest.settings.get("model", "blip2cap")) if self.manifest else "blip2cap"
        with super().writing():
            self._tasks = JsonList(self.file)
            yield
            self._tasks.finish()

    def write(self, item: Item) -> str:
        """Write one task."""
        data = {"image": item.row.file_name}
        if self.options.url_prefix is not None:
            data["image"] = self.options.url_prefix + quote(os.fsencode(image_name(item.row)))
        if item.row.question is not None:
            data["question"] = item.row.question
        place = {"from_name": "caption", "to_name": "image", "type": "textarea"}
        results = [[{**place, "value": {"text": [text]}}] for text in item.texts]
        predictions = [{"model_version": self._model, "result": result} for result in results]
        self._tasks.add({"data": data, "predictions": predictions})
        return ""
