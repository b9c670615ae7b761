"""The description of an update of an index, and its outcome: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blip2cap.errors import UsageError
from blip2cap.options import BatchOptions, DecodeOptions, ModelOptions, SourceOptions
from blip2cap.source.walk import UNREAD_PARTS
from blip2cap.workers.options import WorkerOptions

if TYPE_CHECKING:
    from blip2cap.engine.run import RunStats


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexJob:
    """Everything that defines an update. Raises UsageError for an index that cannot be a folder."""

    index: str
    """Folder of the index; made if it does not exist."""
    source: SourceOptions
    """All images that the index shall hold; others are removed from it."""
    model: ModelOptions = field(default_factory=ModelOptions)
    decode: DecodeOptions = field(default_factory=DecodeOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)
    retry_failed: bool = False
    """Try images again that have failed; without it only when their file has changed."""
    allow_removal: bool = False
    """Allow the update to remove more than half of the images; without it that is refused."""
    check: bool = False
    """Read all files of the index first, and make those again that are damaged."""
    same_inputs: bool = False
    """The folder of the images was renamed or moved: keep the index, with its new name."""

    def __post_init__(self) -> None:
        if not self.index or self.index == "-" or "://" in self.index:
            raise UsageError(f"--out {self.index}: expected a folder on this machine, e.g. my.index.")


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexSummary:
    """Result of an update."""

    index: str
    num_images: int
    """Number of images that can be found now."""
    num_new: int
    """Number of images processed for the first time, failed ones too."""
    num_changed: int
    """Number of images processed again: their files had changed, or failed ones were tried again."""
    num_unchanged: int
    """Number of images found among the inputs that needed nothing, failed ones too."""
    num_removed: int
    """Number of images removed: the inputs do not have them any more."""
    num_failed: int
    """Number of images among the inputs that have failed, in this update or earlier."""
    failed: Mapping[str, int]
    """Number of them by reason."""
    skipped: Mapping[str, int]
    """Number of skipped entries, by reason."""
    damaged: tuple[str, ...] = ()
    """Messages about archives that could not be read completely."""
    stats: RunStats | None = None
    """Counts and times of the run; None if nothing was embedded."""
    stopped: bool = False
    num_kept: int = 0
    """Number of images that were kept without a look at them: they or their folder could not be read, or --limit."""
    num_unread: int = 0
    """Number of those that are among the inputs, but could not be read: they keep their embeddings."""

    @property
    def complete(self) -> bool:
        """True if the index has every input of this update, and every archive and folder could be read."""
        unread = sum(self.skipped.get(reason, 0) for reason in UNREAD_PARTS)
        return not (self.stopped or self.num_failed or self.num_unread or unread or self.damaged)
