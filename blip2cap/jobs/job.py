"""Everything that `caption` or `vqa` was asked to do, and what follows from it without a model."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip2cap.errors import OutputError, UsageError
from blip2cap.options import (
    BatchOptions,
    DecodeOptions,
    GenerateOptions,
    ModelOptions,
    OutputOptions,
    SourceOptions,
    TextOptions,
)
from blip2cap.prompts import CAPTION_PROMPTS, VQA_TEMPLATES, Template
from blip2cap.tasks.worklist import Worklist
from blip2cap.urls import is_http, shown

if TYPE_CHECKING:
    from blip2cap.models.checkpoint import Checkpoint
    from blip2cap.source.inputs import Source

ANY_FAMILY = "opt"
"""Where only the model's family is open: its prompt does not change what is to be done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Everything that a command was asked to do."""

    command: str
    source: SourceOptions
    decode: DecodeOptions
    model: ModelOptions
    batch: BatchOptions
    generate: GenerateOptions
    text: TextOptions
    template: str | None
    """None: what the model's family expects."""
    questions: tuple[str, ...] | None
    """None: captions."""
    out: str
    parts: OutputOptions
    overwrite: bool
    retry_failed: bool
    """Rows with status failed are done again."""
    quiet: bool
    verbose: bool
    as_json: bool

    def check_options(self) -> None:
        """Raise UsageError for options that exclude each other."""
        if not self.decode.allow_http:
            for given in filter(is_http, self.source.inputs):
                raise UsageError(f"{shown(given)}: nothing is fetched from web servers without --allow-http. Add it.")
        if self.out == "-":
            if sys.stdout is None:
                raise OutputError("--out -: standard output is closed.")
            if self.as_json:
                raise UsageError("--json and --out - exclude each other: rows go to standard output. Leave one out.")

    @property
    def to_parts(self) -> bool:
        """True if rows go to a folder of parts."""
        return self.parts.to_parts

    def plan(self, family: str) -> Worklist:
        """Say what is asked about each image of a model of this family."""
        if self.questions is None:
            return Worklist(Template(CAPTION_PROMPTS[family] if self.template is None else self.template))
        text = VQA_TEMPLATES[family] if self.template is None else self.template
        return Worklist(Template(text, option="--template", question=True), self.questions)

    @property
    def _template_name(self) -> str:
        return "prompt" if self.questions is None else "template"

    def settings(self, source: Source) -> dict[str, Any]:
        """Everything that changes a text or a name, but for what only the model knows.

        Questions are not among them: each is a row of its own.
        """
        generate = asdict(self.generate)
        if not self.generate.sampling:
            del generate["seed"]
        root = os.fsencode(source.root).decode("utf-8", "backslashreplace")
        inputs = {"decode": self.decode.mode, "input_root": root}
        if self.source.image_column is not None:
            inputs["image_column"] = self.source.image_column
        text = asdict(self.text) | {"strip": list(self.text.strip)}  # as JSON gives it back
        return {"command": self.command, **generate, **text, "quantize": self.model.quantize, **inputs}

    def known_settings(self, source: Source) -> dict[str, Any]:
        """The settings as far as they are known without loading a model, or fetching one."""
        from blip2cap.models.checkpoint import find

        settings = self.settings(source)
        if self.model.dtype != "auto":
            settings["dtype"] = self.model.dtype
        if self.model.name == "tiny" or Path(self.model.name).expanduser().is_dir():
            return settings | self.model_settings(find(self.model))
        if self.template is not None:
            settings[self._template_name] = self.template
        return settings | {"model": self.model.name}

    def model_settings(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The settings that only the model knows."""
        return {
            "model": checkpoint.name,
            "model_commit": checkpoint.commit,
            self._template_name: self.plan(checkpoint.family).template.text,
        }
