"""The interface between a run and a model, whatever its family."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from blip2cap.errors import ImageError, ModelError, UsageError
from blip2cap.generate_options import GenerateOptions
from blip2cap.options import MAX_PIXELS, ModelOptions
from blip2cap.records import Generated, Prompt

if TYPE_CHECKING:
    from blip2cap.decode.inputs import ImageInput

OnText: TypeAlias = Callable[[str], None]
"""Called with the text so far."""
Result: TypeAlias = list[Generated] | ImageError
"""Result of a text model: texts, best first, or the reason why there are none."""
HINT = "`--model tiny` needs no download."
"""End of every message about a model that cannot be used."""
CAPTIONING_MODELS, MATCHING_MODELS = "Salesforce/blip2-opt-2.7b or tiny", "Salesforce/blip2-itm-vit-g or tiny-itm"
"""Models that messages recommend."""
TOKENIZER_FILES = (
    *(("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",)),
    *(("spiece.model",), ("tokenizer.model",)),
)
"""Files that make a tokenizer: the first of these that is there."""


def dtype_name(dtype: object) -> str:
    """Return the name of a dtype of torch in options and settings: "bfloat16"."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """An adapter that is safe to load."""

    folder: Path
    base: str
    """Name of the model whose weights it changes: a folder, or an id on the hub."""
    revision: str | None
    """Commit of the model on the hub."""
    scale: float
    """Factor of the product of its two matrices."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint on this machine that is safe to load."""

    name: str
    """Name given by the user; for a folder its full path."""
    folder: Path
    commit: str
    """The hub's commit, a fingerprint of the files of a local folder, or `random` for random weights."""
    family: str
    """Key of its family in `registry.FAMILIES`."""
    config: dict[str, Any]
    """Content of config.json."""
    server: str = ""
    """Address of the server that has the model, "" for weights on this machine."""
    adapter: Adapter | None = None
    """Adapter that is added to the weights; `folder` and `config` are those of the model without it."""

    @property
    def announcement(self) -> str:
        """Line for users before it is loaded."""
        return f"asking {self.server} for {self.name} ..." if self.server else f"loading {self.name} ..."

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return int((self.config.get("vision_config") or {}).get("image_size", 224))

    @property
    def text_type(self) -> str:
        """Type of the language model: opt, t5 or llama."""
        return text_type(self.config)


class Session(Protocol):
    """One run of a model: images are encoded, prompts about them are added, results come by ticket, in any order."""

    @property
    def capacity(self) -> int:
        """Largest number of prompts processed at once."""

    @property
    def num_pending(self) -> int:
        """Number of prompts that wait or run."""

    @property
    def num_ahead(self) -> int:
        """Number of prompts that should wait besides those of the capacity: of more, similar ones can be chosen."""
        return 0

    def encode(self, images: Sequence[Any]) -> Any:
        """Run the vision encoder on images in the model's form; return their features, for `add`.

        Raises MemoryError if the images do not fit.
        """

    def add(self, features: Any, prompts: Sequence[Prompt]) -> list[int]:
        """Queue prompts about images, given the features of the images; return a ticket for each prompt."""

    def advance(self) -> list[tuple[int, Any]]:
        """Compute for a while; return the results that are complete, or an ImageError in their place, by ticket."""

    def close(self) -> None:
        """Give up what is not complete; most sessions have nothing to do for that."""
        return


class Model(Protocol):
    """A loaded model."""

    checkpoint: Checkpoint
    """The checkpoint it was loaded from."""
    device: Any
    """Device it computes on; `str` of it is shown to users."""
    dtype: Any
    """Dtype it computes in; `str` of it, without `torch.`, is in manifests."""
    quantize: str | None
    """Quantisation of its weights, as `ModelOptions.quantize` names it."""
    on_cpu: bool
    """True if it computes on the cores that images are decoded on."""
    fallback_reason: str
    """Reason why texts are generated in a slower way than this family's own; empty if they are not."""
    remark: str
    """Message about the checkpoint for the user; empty if there is none."""

    @property
    def image_input(self) -> ImageInput:
        """Form in which it takes images."""

    def wait(self) -> None:
        """Wait until the device has finished the work it was given."""


class TextModel(Model, Protocol):
    """A loaded model that generates text."""

    def check(self, options: GenerateOptions, prompts: Sequence[str] = ()) -> None:
        """Raise UsageError for options that no prompt can be generated with, and for a prompt that is too long."""

    def start_texts(self, options: GenerateOptions, *, capacity: int | None) -> Session:
        """Open a session that generates text; None lets the model choose its capacity."""

    def start_chat(self, options: GenerateOptions, *, on_text: OnText) -> Session:
        """Open a session for one prompt at a time, which may have earlier `turns`.

        `on_text` is called with the text of the prompt so far, each time that it has grown; not with several beams.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """A family of models: how a checkpoint is recognised, prompted and loaded."""

    name: str
    model_type: str
    """`model_type` in config.json."""
    architecture: str = ""
    """Name of its class among `architectures` in config.json, where `model_type` is shared; "": any."""
    text_types: tuple[str, ...] = ()
    """Types of language models that are supported; empty: any."""
    tasks: tuple[str, ...] = ("caption", "vqa", "embed", "chat")
    """Names of the tasks that its models can do; `chat` is a conversation, which makes no rows."""
    caption_prompt: str = ""
    """Beginning of a caption unless --prompt is given."""
    vqa_template: str = "{question}"
    """Template of a question unless --template is given."""
    has_system_turn: bool = False
    """True if --system can be given."""
    region_prompts: tuple[str, ...] = ()
    """Beginnings of prompts whose texts hold regions of the image."""
    tokenizers: tuple[str, ...] = ()
    """Folders below a checkpoint's own that hold a tokenizer each; "" is its own."""
    check_files: Callable[[Checkpoint], None] = lambda checkpoint: None
    """Check the small files of a checkpoint, before its weights are downloaded or read. Raises ModelError."""
    any_image_size: bool = False
    """True if images may have any size, within --max-pixels."""
    batch_size: int | None = None
    """Number of images that a run hands over at once; None: --batch-size, or else it is measured."""
    grace_s: float = math.inf
    """Longest time, in seconds, in which a run that is stopped completes the images in the model."""
    image_input: Callable[[Checkpoint, ModelOptions], ImageInput]
    """Form in which images are taken, known before the model is loaded."""
    load: Callable[[Checkpoint, ModelOptions], Model]
    """Load a checkpoint. Raises ModelError or UsageError."""

    def matches(self, config: dict[str, Any]) -> bool:
        """Return True for the content of a config.json of this family."""
        return (
            config.get("model_type") == self.model_type
            and (not self.architecture or self.architecture in (config.get("architectures") or ()))
            and (not self.text_types or text_type(config) in self.text_types)
        )

    def check_system(self, options: GenerateOptions, checkpoint: Checkpoint) -> None:
        """Raise UsageError for --system if its models have no system's turn."""
        if options.system is not None and not self.has_system_turn:
            raise UsageError(
                f"--system: --model {checkpoint.name} is of the family {self.name}, which has no system's turn. "
                "Leave it out."
            )

    def max_pixels(self, options: ModelOptions) -> int | None:
        """Return the number of pixels that an image may have; None if all have one size.

        Raises UsageError if --max-pixels is given for such a family.
        """
        if self.any_image_size:
            return options.max_pixels or MAX_PIXELS
        if options.max_pixels is not None:
            raise UsageError(
                f"--max-pixels {options.max_pixels}: --model {options.name} is of the family {self.name}, which takes "
                "images of one size. Leave it out."
            )
        return None

    def check_task(self, task: str, checkpoint: Checkpoint) -> None:
        """Raise UsageError if its models cannot do a task; the message names models that can."""
        if task not in self.tasks:
            fitting = MATCHING_MODELS if task in ("match", "embed") else CAPTIONING_MODELS
            raise UsageError(
                f"--model {checkpoint.name}: a model of the family {self.name}, which cannot {task}. It can: "
                f"{', '.join(self.tasks)}. To {task}, use {fitting}."
            )


def text_type(config: dict[str, Any]) -> str:
    """Return the type of the language model in the content of a config.json."""
    return str((config.get("text_config") or {}).get("model_type", "opt"))


def tokenizer_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that make the tokenizer of a folder; () if there is none."""
    return next((names for names in TOKENIZER_FILES if all((folder / name).is_file() for name in names)), ())


def read_json(name: str, path: Path) -> dict[str, Any]:
    """Read a JSON file of the model `name`. Raises ModelError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"--model {name}: {path.name} cannot be read: {error}. {HINT}") from error
    if not isinstance(content, dict):
        raise ModelError(f"--model {name}: {path.name} cannot be read: expected an object. {HINT}")
    return content
