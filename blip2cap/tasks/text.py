"""The base of captions and answers: options of generated text, and the columns of a text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, Self

from blip2cap.column_types import INTEGER, REGIONS, STRINGS
from blip2cap.errors import ImageError, UsageError
from blip2cap.generate_options import GenerateOptions, TextOptions
from blip2cap.models.base import Checkpoint, Family, Session, TextModel
from blip2cap.prompts import Template
from blip2cap.records import Generated, ImageRef
from blip2cap.rows import Column, Row, Schema, make_schema
from blip2cap.tasks.base import SameLabels
from blip2cap.tasks.loop_guard import GuardedSession, worst_flag
from blip2cap.tasks.regions import find_regions
from blip2cap.tasks.text_rules import strip_prefixes, trim_to_sentence


@lru_cache
def text_schema(*, question: bool = False, texts: bool = False, regions: bool = False, flag: bool = False) -> Schema:
    """Return the columns of texts: with `question` those of answers, with `texts` those of several captions."""
    named = (Column("question"), Column("answer")) if question else (Column("text"),)
    several = (Column("texts", STRINGS),) if texts else ()
    found = (Column("regions", REGIONS),) if regions else ()
    flagged = (Column("flag"),) if flag else ()
    details = (Column("finish_reason"), *flagged, Column("num_tokens", INTEGER))
    return make_schema(*named, *several, *found, details=details, key="question" if question else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTask(SameLabels):
    """A task whose results are generated texts."""

    name: ClassVar[str]
    template_setting: ClassVar[str]
    """Name of the template in the settings of an output."""

    template: str | None = None
    """Template of the prompt; None: that of the model's family."""
    generate: GenerateOptions = field(default_factory=GenerateOptions)
    text: TextOptions = field(default_factory=TextOptions)
    regions: bool = False
    """True if the texts hold regions of the image; the model's family decides."""

    def __post_init__(self) -> None:
        if self.template is not None:
            template = self._parsed()
            if not is_text(template.text):
                raise UsageError(f"prompt {template.text!r}: not valid UTF-8.")
        if self.generate.system is not None and not is_text(self.generate.system):
            raise UsageError(f"--system {self.generate.system!r}: not valid UTF-8.")

    @property
    def labels(self) -> Sequence[str | None]:
        """One row for each image."""
        return (None,)

    @property
    def schema(self) -> Schema:
        """Columns of the rows."""
        asks = self.labels != (None,)
        return text_schema(
            question=asks,
            texts=self.generate.num_captions > 1,
            regions=self.regions,
            flag=self.text.loop_guard,
        )

    @property
    def deterministic(self) -> bool:
        """False when sampling: each image has its own random numbers, so texts of equal images differ."""
        return not self.generate.sampling

    def settings(self) -> dict[str, Any]:
        """Return the options that change a text. Questions are not among them, as each has its own rows."""
        generate = asdict(self.generate)
        if not self.generate.sampling:
            del generate["seed"]
        if self.generate.system is None:  # most models have none
            del generate["system"]
        return generate | asdict(self.text) | {"strip": list(self.text.strip)}

    def model_settings(self) -> dict[str, Any]:
        """Return the template, if it is known, and whether texts hold regions."""
        template = {} if self.template is None else {self.template_setting: self.template}
        return template | ({"regions": True} if self.regions else {})

    def for_checkpoint(self, checkpoint: Checkpoint, family: Family) -> Self:
        """Return the task with the template of a family, unless one was given, and with the columns that it makes."""
        family.check_task(self.name, checkpoint)
        family.check_system(self.generate, checkpoint)
        template = self._default_template(family) if self.template is None else self.template
        return replace(self, template=template, regions=template.startswith(family.region_prompts))

    def check(self, model: Any) -> None:
        """Raise UsageError for options and prompts that do not fit the model, before any image is read.

        Prompts that hold the name of an image are not known yet: one that does not fit costs its row.
        """
        template = self._parsed()
        prompts = [template.fill("", label or "") for label in self.labels] if template.is_constant else []
        model.check(self.generate, prompts)

    def start(self, model: TextModel, *, capacity: int | None) -> Session:
        """Open a session that generates text, with the loop guard if it is on."""

        def start(options: GenerateOptions) -> Session:
            return model.start_texts(options, capacity=capacity)

        return GuardedSession(start, self.generate) if self.text.loop_guard else start(self.generate)

    def prompt(self, ref: ImageRef, label: str | None) -> str:
        """Fill the template."""
        return self._parsed().fill(ref.file_name, label or "")

    def finish(self, result: Sequence[Generated]) -> list[Generated]:
        """Truncate texts to whole sentences, then remove prefixes."""
        finished = []
        for generated in result:
            text = generated.text
            if self.text.trim_sentence and generated.finish_reason == "length":
                text = trim_to_sentence(text)
            finished.append(replace(generated, text=strip_prefixes(text, self.text.strip)))
        return finished

    def row(
        self, ref: ImageRef, label: str | None, result: Sequence[Generated] | ImageError, *, width: int, height: int
    ) -> Row:
        """Make the row of one or several texts for an image; the first is the best."""
        failed = isinstance(result, ImageError)
        texts = [] if isinstance(result, ImageError) else list(result)
        first = texts[0] if texts else Generated(text="", finish_reason="", num_tokens=0)
        values: dict[str, Any] = {"text": first.text} if label is None else {"question": label, "answer": first.text}
        if self.generate.num_captions > 1:
            values["texts"] = tuple(generated.text for generated in texts)
        if self.regions:
            values["regions"] = find_regions(first.text, self.template or "", width=width, height=height)
        if self.text.loop_guard:
            values["flag"] = worst_flag(texts)
        return self.schema.row(
            file_name=ref.file_name,
            file_name_b64=ref.file_name_b64,
            **values,
            status="failed" if failed else "ok",
            error=result.code if isinstance(result, ImageError) else "",
            finish_reason=first.finish_reason,
            num_tokens=first.num_tokens,
            width=width,
            height=height,
        )

    def _parsed(self) -> Template:
        assert self.template is not None, "for_checkpoint comes first"
        return parsed(self.template)

    def _default_template(self, family: Family) -> str:
        raise NotImplementedError


parsed = lru_cache(Template)
"""Return a template, parsed once for all images."""


def is_text(text: str) -> bool:
    """Return whether a string from the command line is valid UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def schema_from(settings: Mapping[str, Any], *, question: bool) -> Schema:
    """Return the columns of an output with these settings."""
    return text_schema(
        question=question,
        texts=settings.get("num_captions", 1) > 1,
        regions=bool(settings.get("regions")),
        flag=bool(settings.get("loop_guard")),
    )


def schema_with(columns: Collection[str], *, question: bool) -> Schema:
    """Return the columns of an output with columns of these names."""
    return text_schema(
        question=question, texts="texts" in columns, regions="regions" in columns, flag="flag" in columns
    )
