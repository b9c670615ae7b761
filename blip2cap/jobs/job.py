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
    PartsOptions,
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
    parts: PartsOptions
    overwrite: bool
    retry_failed: bool
    """Rows with status failed are done again."""
    quiet: bool
    verbose: bool
    as_json: bool

    def check_options(self) -> None:
        """Raise UsageError for options that exclude each other."""
        if self.quiet and self.verbose:
            raise UsageError("--quiet and --verbose exclude each other.")
        if self.overwrite and self.retry_failed:
            raise UsageError("--overwrite and --retry-failed exclude each other: the first does every image again.")
        if not self.decode.allow_http:
            for given in filter(is_http, self.source.inputs):
                raise UsageError(f"{shown(given)}: nothing is fetched from web servers without --allow-http. Add it.")
        if self.out == "-":
            if sys.stdout is None:
                raise OutputError("--out -: standard output is closed.")
            if self.overwrite or self.retry_failed or self.as_json:
                flag = "--overwrite" if self.overwrite else "--retry-failed" if self.retry_failed else "--json"
                raise UsageError(f"{flag} and --out - exclude each other: rows go to standard output. Leave one out.")
        elif self.to_parts:
            self._check_parts_options()
        elif Path(self.out).suffix.lower() not in (".jsonl", ".parquet"):
            raise UsageError(
                f"--out {self.out}: must end in .jsonl or .parquet, or in / for a folder of parts, or be `-` for "
                "standard output."
            )
        if not self.to_parts and self.parts != PartsOptions():
            raise UsageError("--part-size and --shard are for a folder of parts: give --out a name that ends in /.")

    @property
    def to_parts(self) -> bool:
        """Whether rows go to a folder of parts, here or in a bucket."""
        if self.out.endswith("/") or "://" in self.out:
            return True
        return os.path.isdir(self.out) and Path(self.out).suffix.lower() not in (".jsonl", ".parquet")

    def _check_parts_options(self) -> None:
        if "://" in self.out and not self.out.endswith("/"):
            raise UsageError(f"--out {self.out}: a remote output is a folder of parts. Let its name end in /.")
        if self.overwrite:
            raise UsageError(
                f"--overwrite and --out {self.out} exclude each other: a folder is never deleted. Remove it yourself, "
                "or use another --out."
            )

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
