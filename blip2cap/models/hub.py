"""Models on the Hugging Face hub: found in its cache, or downloaded into it.

Weights are downloaded here and not by `snapshot_download`, which starts a file of 10 GB from its first byte after every
interruption, and waits for its threads before it lets a signal through. Everything else is left to it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blip2cap.errors import ModelError
from blip2cap.models.base import HINT
from blip2cap.options import ModelOptions

_WANTED_FILES = ["*.json", "*.jinja", "*.safetensors", "*.txt", "*.model"]
_PICKLES = (".bin", ".pth", ".pt")


def is_offline() -> bool:
    """Return True if the environment forbids downloads."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def find_cached(options: ModelOptions) -> Path | None:
    """Return the folder of a model in the cache, which may lack files; None if there is none."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    with _hub_errors(options):
        try:
            return _snapshot(options, local_files_only=True)
        except LocalEntryNotFoundError:
            return None


def download(
    options: ModelOptions, *, check: Callable[[Path], object], say: Callable[[str], None], quiet: bool
) -> Path:
    """Download what is missing of a model; return its folder. A download that was stopped continues where it was.

    `check` is called with the folder before the weights come, `say` with their size and place; `quiet`: without a
    progress bar.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import filter_repo_objects

    with _hub_errors(options):
        name = options.name
        model = HfApi().model_info(
            name, revision=options.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
        files = model.siblings or []
        wanted = list(filter_repo_objects(files, allow_patterns=_WANTED_FILES, key=lambda file: file.rfilename))
        if not any(file.rfilename.endswith(".safetensors") for file in wanted):
            pickles = [file.rfilename for file in files if file.rfilename.endswith(_PICKLES)]
            if pickles:
                raise ModelError(only_pickles(name, pickles, model.config or {}))
        with _bars(shown=False):
            check(_snapshot(options, ignore_patterns="*.safetensors"))
        cache = Path(constants.HF_HUB_CACHE)
        blobs = cache / repo_folder_name(repo_id=name, repo_type="model") / "blobs"
        missing = [
            _Blob(name, model.sha, file, cache=cache, folder=blobs)
            for file in wanted
            if file.lfs and not isinstance(try_to_load_from_cache(name, file.rfilename, revision=model.sha), str)
        ]
        missing = [blob for blob in missing if not blob.path.exists()]
        if missing:
            _announce(options, missing, cache, say)
        for blob in missing:
            with _bars(shown=not quiet):
                blob.fetch()
        with _bars(shown=False):
            return _snapshot(options)


def only_pickles(name: str, pickles: Sequence[str], config: dict[str, Any]) -> str:
    """Return the message that a model has no weights but pickles, and how to convert them."""
    kind = next(iter(config.get("architectures") or ()), "Blip2ForConditionalGeneration")
    return (
        f"--model {name}: has only {', '.join(pickles)}, which may run code when loaded. Expected model.safetensors. "
        "If you trust them, convert them in Python and give the folder as --model: "
        f"transformers.{kind}.from_pretrained({name!r}).save_pretrained('FOLDER'); "
        f"transformers.AutoProcessor.from_pretrained({name!r}).save_pretrained('FOLDER'). {HINT}"
    )


def _snapshot(options: ModelOptions, **settings: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(options.name, revision=options.revision, allow_patterns=_WANTED_FILES, **settings))


def _announce(options: ModelOptions, missing: Sequence[_Blob], cache: Path, say: Callable[[str], None]) -> None:
    """Say how much comes, and where to. Raises ModelError if it does not fit the disk."""
    num_bytes, num_there = sum(blob.num_bytes for blob in missing), sum(blob.num_there for blob in missing)
    disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    continued = f" ({_shown(num_there)} of {_shown(num_bytes)} already downloaded)" if num_there else ""
    size = f"{_shown(num_bytes - num_there)}{continued}"
    if num_bytes - num_there > free:
        raise ModelError(
            f"--model {options.name}: {size} to download do not fit {cache}, where {_shown(free)} are free. Free disk "
            f"space, or set HF_HOME to a folder on a larger disk. {HINT}"
        )
    say(f"downloading {options.name}: {size} to {cache}, where {_shown(free)} are free")


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 5e7 else f"{num_bytes / 1e6:.1f} MB"


class _Blob:
    """A file of weights on its way into the cache, in the place where `snapshot_download` looks for it."""

    def __init__(self, name: str, commit: str, file: Any, *, cache: Path, folder: Path) -> None:
        self.name, self.commit, self.file_name = name, commit, file.rfilename
        self.num_bytes, self.sha256 = int(file.lfs.size), str(file.lfs.sha256)
        self.path = folder / self.sha256
        self.part = folder / f"{self.sha256}.incomplete"
        self.lock = cache / ".locks" / folder.parent.name / f"{self.sha256}.lock"

    @property
    def num_there(self) -> int:
        """Number of bytes that an interrupted download has left."""
        return self.part.stat().st_size if self.part.exists() else 0

    def fetch(self) -> None:
        """Download what is missing. Raises ModelError if the bytes are not those of the hub."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import WeakFileLock, build_hf_headers

        self.part.parent.mkdir(parents=True, exist_ok=True)
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self.lock):
            if self.path.exists():  # another process was faster
                return
            for leftover in self.part.parent.glob(f"{self.sha256}.*.incomplete"):
                leftover.unlink()  # of a killed `snapshot_download`, which would never use it again
            with open(self.part, "ab") as part:
                if part.tell() > self.num_bytes:  # the hub would refuse to continue it, at every attempt
                    part.truncate(0)
                    part.seek(0)
                http_get(
                    hf_hub_url(self.name, self.file_name, revision=self.commit),
                    part,
                    resume_size=part.tell(),
                    headers=build_hf_headers(),
                    expected_size=self.num_bytes,
                    displayed_filename=self.file_name,
                )
            with open(self.part, "rb") as part:
                is_whole = hashlib.file_digest(part, "sha256").hexdigest() == self.sha256
            if not is_whole:
                self.part.unlink()
                raise ModelError(
                    f"--model {self.name}: {self.file_name} was damaged on its way here, and has been removed. Run the "
                    f"same command again. {HINT}"
                )
            os.replace(self.part, self.path)


@contextmanager
def _bars(*, shown: bool) -> Iterator[None]:
    """Let huggingface_hub draw progress bars, or not."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _hub_errors(options: ModelOptions) -> Iterator[None]:
    """Raise ModelError for the errors of the hub, of the network and of the disk."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:
        is_wrapped = isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None
        reason = _reason(error.__cause__ if is_wrapped else error, options)
        raise ModelError(f"--model {options.name}: {reason} {HINT}") from error


def _reason(error: BaseException | None, options: ModelOptions) -> str:
    """Return what has happened, and what to do."""
    from huggingface_hub import constants, errors

    page, tokens = f"{constants.ENDPOINT}/{options.name}", f"{constants.ENDPOINT}/settings/tokens"
    if isinstance(error, errors.HFValidationError):
        return "neither a folder nor a hub id."
    if isinstance(error, errors.GatedRepoError):
        return f"it is gated. Accept its terms on {page}, then set HF_TOKEN to a token of that account ({tokens})."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {options.revision} of it. Choose a branch, a tag or a commit on {page}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"not on the hub, or private. Check the name on {page}; if it is private, set HF_TOKEN ({tokens})."
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        advice = f"Check HF_TOKEN ({tokens})" if status in (401, 403) else "Run the same command again later"
        return f"the hub answered with HTTP status {status}. {advice}; a download continues where it was."
    if isinstance(error, errors.OfflineModeIsEnabled):
        why = "the hub cannot be reached: HF_HUB_OFFLINE is set"
    elif isinstance(error, errors.HTTPError) and "Timeout" in type(error).__name__:
        why = "the hub did not answer in time"
    elif isinstance(error, (errors.HTTPError, ConnectionError)):
        why = "the hub cannot be reached"
    else:
        return f"cannot be fetched from the hub: {error}."
    return (
        f"not in the local cache{_cached_commits(options)}, and {why}. Check the network and the name; a download "
        "continues where it was."
    )


def _cached_commits(options: ModelOptions) -> str:
    """Return the revisions that the cache has, if another one was asked for: only the hub knows short commits."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=options.name, repo_type="model") / "snapshots"
    commits = sorted(path.name for path in folder.glob("*"))
    return f" at revision {options.revision} (but at {', '.join(commits)})" if options.revision and commits else ""
