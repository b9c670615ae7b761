"""The Python interface: load a model once, then caption images or ask about them, in lists or in folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import overload

from blip2cap.chat import CHAT_OPTIONS, Chat
from blip2cap.decode.data_urls import DataUrlInput
from blip2cap.decode.inputs import ResizedInput
from blip2cap.engine.run import Engine, RunStats
from blip2cap.errors import ImageError, UsageError
from blip2cap.generate_options import ANSWER_NEW_TOKENS, GenerateOptions, TextOptions
from blip2cap.images_in_memory import ImageLike, check_images, raise_with_name, rows_of_images
from blip2cap.jobs.job import Job, Listener, Outcome
from blip2cap.jobs.run import run_job
from blip2cap.models.base import Model
from blip2cap.models.checkpoint import find
from blip2cap.models.registry import FAMILIES, load
from blip2cap.options import DEFAULT_MODEL, BatchOptions, DecodeOptions, ModelOptions, OutputOptions, SourceOptions
from blip2cap.records import ImageRef
from blip2cap.rows import Row
from blip2cap.server_options import ServerOptions
from blip2cap.source.inputs import Source
from blip2cap.tasks.base import Task, Worklist
from blip2cap.tasks.caption import Caption
from blip2cap.tasks.vqa import Vqa

_ANSWERS = GenerateOptions(max_new_tokens=ANSWER_NEW_TOKENS)


class Captioner:
    """A loaded model that captions images and answers questions about them."""

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int | None = None,
        decode: DecodeOptions | None = None,
    ) -> None:
        self.model = model
        self.decode_options = decode or DecodeOptions()
        self.batch = BatchOptions(batch_size=batch_size or FAMILIES[model.checkpoint.family].batch_size)

    @classmethod
    def load(
        cls,
        name: str = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        device_map: str | None = None,
        quantize: str | None = None,
        max_pixels: int | None = None,
        server: ServerOptions | None = None,
        batch_size: int | None = None,
        decode: DecodeOptions | None = None,
    ) -> Captioner:
        """Load `tiny`, a local folder or a Hub id, or use the model `openai:NAME` of a server.

        Raises ModelError or UsageError.
        """
        options = ModelOptions(
            name=name,
            revision=revision,
            dtype=dtype,
            device=device,
            device_map=device_map,
            quantize=quantize,
            max_pixels=max_pixels,
            server=server or ServerOptions(),
        )
        return cls(load(find(options), options), batch_size=batch_size, decode=decode)

    def caption(
        self,
        images: Sequence[ImageLike],
        *,
        prompt: str | None = None,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
    ) -> list[str]:
        """Return a caption for each image. Raises ImageError for one that cannot be read.

        An image is a path, a Pillow image, a numpy array of uint8 [height, width, 3] or a torch tensor of uint8
        [3, height, width], on any device. `prompt` may contain {stem}, {folder} and {file_name}, as on the command
        line; the name of an image without a path is a hash of its pixels. Flags of the loop guard are only in the rows
        of `caption_folder`.
        """
        return self._texts(images, _caption(prompt, options, text_options))

    def ask(
        self,
        images: Sequence[ImageLike],
        question: str,
        *,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
    ) -> list[str]:
        """Return the answer to one question for each image. Raises ImageError for one that cannot be read."""
        return self._texts(images, _vqa((question,), options, text_options))

    def chat(self, image: ImageLike, *, options: GenerateOptions | None = None) -> Chat:
        """Start a conversation about an image, which is encoded once. Raises ImageError if it cannot be read."""
        return Chat(self.model, image, options=options or CHAT_OPTIONS, decode=self.decode_options)

    @overload
    def caption_folder(
        self,
        path: str | os.PathLike[str],
        *,
        out: None = None,
        prompt: str | None = None,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
        on_progress: Callable[[RunStats], None] | None = None,
    ) -> Iterator[Row]: ...

    @overload
    def caption_folder(
        self,
        path: str | os.PathLike[str],
        *,
        out: str | os.PathLike[str],
        overwrite: bool = False,
        retry_failed: bool = False,
        prompt: str | None = None,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
        on_progress: Callable[[RunStats], None] | None = None,
    ) -> Outcome: ...

    def caption_folder(
        self,
        path: str | os.PathLike[str],
        *,
        out: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        retry_failed: bool = False,
        prompt: str | None = None,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
        on_progress: Callable[[RunStats], None] | None = None,
    ) -> Iterator[Row] | Outcome:
        """Caption every image below a folder, in order.

        Without `out`, yields a typed row for each, ok or failed, and writes nothing. With `out`, a name as the command
        line takes it (.jsonl, .parquet, or a string that ends in / for a folder of parts), writes the rows there, or
        resumes that output, and returns an Outcome with the counts. `on_progress` is told after each batch. Raises
        InputError if the folder does not exist.
        """
        task = _caption(prompt, options, text_options)
        return self._folder(path, task, out, overwrite, retry_failed, on_progress)

    @overload
    def ask_folder(
        self,
        path: str | os.PathLike[str],
        questions: Sequence[str],
        *,
        out: None = None,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
        on_progress: Callable[[RunStats], None] | None = None,
    ) -> Iterator[Row]: ...

    @overload
    def ask_folder(
        self,
        path: str | os.PathLike[str],
        questions: Sequence[str],
        *,
        out: str | os.PathLike[str],
        overwrite: bool = False,
        retry_failed: bool = False,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
        on_progress: Callable[[RunStats], None] | None = None,
    ) -> Outcome: ...

    def ask_folder(
        self,
        path: str | os.PathLike[str],
        questions: Sequence[str],
        *,
        out: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        retry_failed: bool = False,
        options: GenerateOptions | None = None,
        text_options: TextOptions | None = None,
        on_progress: Callable[[RunStats], None] | None = None,
    ) -> Iterator[Row] | Outcome:
        """Ask every question about every image below a folder; otherwise as `caption_folder`."""
        if isinstance(questions, str):
            raise TypeError("expected a sequence of questions, got one str: put it in a list.")
        task = _vqa(tuple(questions), options, text_options)
        return self._folder(path, task, out, overwrite, retry_failed, on_progress)

    def _folder(
        self,
        path: str | os.PathLike[str],
        task: Task,
        out: str | os.PathLike[str] | None,
        overwrite: bool,
        retry_failed: bool,
        on_progress: Callable[[RunStats], None] | None,
    ) -> Iterator[Row] | Outcome:
        source = SourceOptions(inputs=(os.fspath(path),))
        if out is None:
            if overwrite or retry_failed:
                raise UsageError("overwrite and retry_failed need an output: give out=PATH.")
            return self._rows(self._engine(task), Source(source), on_progress)
        if os.fspath(out) == "-":
            raise UsageError("out='-' is for the command line. Leave out=None to get the rows.")
        output = OutputOptions(out=os.fspath(out), overwrite=overwrite, retry_failed=retry_failed)
        taken = self.model.image_input
        model = ModelOptions(
            name=self.model.checkpoint.name,
            quantize=self.model.quantize,
            max_pixels=taken.max_pixels if isinstance(taken, (ResizedInput, DataUrlInput)) else None,
        )
        job = Job(
            task=task,
            source=source,
            output=output,
            model=model,
            decode=self.decode_options,
            batch=self.batch,
        )
        return run_job(job, model=self.model, listener=_ProgressListener(on_progress or (lambda stats: None)))

    def _engine(self, task: Task, on_failure: Callable[[ImageRef, ImageError], None] | None = None) -> Engine:
        task = task.for_checkpoint(self.model.checkpoint, FAMILIES[self.model.checkpoint.family])
        task.check(self.model)
        return Engine(
            model=self.model,
            task=task,
            decode=self.decode_options,
            batch=self.batch,
            on_failure=on_failure or (lambda ref, error: None),
        )

    def _rows(self, engine: Engine, source: Source, on_progress: Callable[[RunStats], None] | None) -> Iterator[Row]:
        stats = RunStats()
        requests = Worklist(engine.task).requests(source.stream(), frozenset())
        for rows in engine.row_batches(engine.read_ahead(requests), stats):
            if on_progress:
                on_progress(stats)
            yield from rows

    def _texts(self, images: Sequence[ImageLike], task: Caption | Vqa) -> list[str]:
        check_images(images)
        if task.generate.num_captions > 1:
            num_captions = task.generate.num_captions
            raise UsageError(f"num_captions={num_captions}: expected 1, as this returns one text. Use caption_folder.")
        return [row.text for row in rows_of_images(self._engine(task, raise_with_name), images)]


class _ProgressListener(Listener):
    """Passes the progress of a run to a function."""

    def __init__(self, on_progress: Callable[[RunStats], None]) -> None:
        self._on_progress = on_progress

    def progress(self, stats: RunStats) -> None:
        """Call the function."""
        self._on_progress(stats)


def _caption(prompt: str | None, options: GenerateOptions | None, text_options: TextOptions | None) -> Caption:
    return Caption(template=prompt, generate=options or GenerateOptions(), text=text_options or TextOptions())


def _vqa(questions: tuple[str, ...], options: GenerateOptions | None, text_options: TextOptions | None) -> Vqa:
    return Vqa(questions=questions, generate=options or _ANSWERS, text=text_options or TextOptions())
