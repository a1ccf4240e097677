"""A model's name becomes a folder on this machine: a local one as it is, else from the hub.

A GGUF file becomes the folder that it was converted to (`gguf_targets.py`).
It downloads and caches through huggingface_hub, whose settings hold (HF_HOME, HF_ENDPOINT,
HF_TOKEN, HF_HUB_OFFLINE). It does not look inside the folder. Files of code are never fetched.
"""

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from mlx_eagle.errors import HubError
from mlx_eagle.hub.gguf_targets import SUFFIX, find_gguf, prepare_target

Progress = Callable[[str, int, int], None]
Notify = Callable[[str], None]

# What huggingface_hub raises over an answer that is none of the hub's: a login page, say.
STRANGE_ANSWERS = (ValueError, LookupError, TypeError, AttributeError)

WANTED = [
    "*.json",
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.jinja",
    "tokenizer.model",
    "*.txt",
    "*.tiktoken",
]
# Subfolders hold other formats of the same weights; "consolidated" is a second copy of them.
UNWANTED = ["*/*", "consolidated*", "*.py"]
PICKLES = ["*.bin", "*.pt"]
# A file that is interrupted starts again, so few are under way at once.
MAX_WORKERS = 2
FREE_SPACE = "free some, or set HF_HOME to a folder on another disk; finished files are kept"
# Network failures derive from httpx's error in some hub releases and from httpx2's in others.
NetworkError: type[Exception] = HfHubHTTPError.__bases__[0]


class _NotTheHubError(OSError):
    """What answered in the hub's place sent something that is not the hub's."""


class Repo(NamedTuple):
    """A model on the hub: `owner/name`, and a branch, tag or commit."""

    id: str
    revision: str

    @property
    def name(self) -> str:
        """The form in which users write it."""
        default = self.revision == constants.DEFAULT_REVISION
        return self.id if default else f"{self.id}@{self.revision}"


def fetch(
    name: str | Path,
    *,
    progress: Progress | None = None,
    notify: Notify | None = None,
    before: "Callable[[Listing], None] | None" = None,
    only: Sequence[str] | None = None,
) -> Path:
    """Return the local folder of a model, downloading it if it is a hub name that is not cached.

    Args:
        name: a local folder, a GGUF file, `ollama:NAME` or `lmstudio:NAME`, or `owner/name` or
            `owner/name@revision` on the hub; with `mtp:` before it, its multi-token prediction
            layer alone.
        progress: called with ("download <name>", bytes done, bytes in all), first before the
            first byte, from several threads; likewise with "convert <name>" for a GGUF file.
        notify: told in one line if a GGUF file is converted, or if what is cached has to do
            because what answers in the hub's place is not the hub; None writes to stderr.
        before: called before a download with what the model has and what is missing of it; what
            it raises keeps the download from beginning.
        only: the files that are needed, such as `config.json`, of those that a model has; None
            for all. A local folder is not looked into.

    Raises:
        HubError: if it is neither; the message says which and what to do.
        EagleError: if a GGUF file cannot be converted.
    """
    folder = _local_folder(name, progress or _silent, notify or to_stderr)
    if folder is not None:
        return folder
    if os.path.exists(os.path.expanduser(name)):
        raise HubError(f"{name} is a file; give the folder that holds the model, or a GGUF file")
    repo = parse_repo(str(name))
    wanted = WANTED if only is None else list(only)
    told = Told(progress or _silent, notify or to_stderr, before)
    try:
        return _fetch_repo(repo, told, wanted)
    except (NetworkError, OSError) as error:
        raise HubError(explain(repo, error)) from error


def _local_folder(name: str | Path, progress: Progress, notify: Notify) -> Path | None:
    """Return the folder of a model that is on this machine; None for a name that is not."""
    if str(name).startswith("mtp:"):
        from mlx_eagle.hub.native_mtp import fetch_layer  # which fetches by this module

        return fetch_layer(str(name), progress, notify)
    found = find_gguf(name)
    if found is not None and found.is_file():
        return prepare_target(found, str(name), progress, notify)
    folder = found or Path(os.path.expanduser(name))
    return folder if os.path.isdir(folder) else None


class Listing(NamedTuple):
    """The files of a model that would be used: bytes by name, and bytes that are not here yet."""

    sizes: dict[str, int]
    missing: int


def list_files(name: str | Path) -> Listing:
    """Return which files a model has, without fetching any.

    Args:
        name: as for `fetch`; a GGUF file has those of its conversion.

    Raises:
        HubError: if it is neither, or the hub cannot be asked and nothing is cached.
    """
    if str(name).startswith("mtp:"):
        from mlx_eagle.hub.native_mtp import list_layer

        return list_layer(str(name))
    folder = _local_folder(name, _silent, to_stderr)
    if folder is not None:
        return _listing_of(folder)
    repo = parse_repo(str(name))
    try:
        return _listing(_wanted(repo, WANTED))
    except (DryRunError, NetworkError, OSError) as error:
        return _listing_of(_cached(repo, WANTED, error.__cause__ or error))


def _listing_of(folder: Path) -> Listing:
    """Return the files of a folder."""
    files = [file for file in folder.iterdir() if file.is_file()]
    return Listing({file.name: file.stat().st_size for file in files}, 0)


def _listing(files: Sequence[Any]) -> Listing:
    """Return the files that the hub names."""
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    return Listing({file.filename: file.file_size or 0 for file in files}, missing)


def _wanted(repo: Repo, wanted: list[str]) -> list[Any]:
    """Return what the hub says of the files that we want; pickles only where there is no better."""
    meter = _meter(_silent, "", 0)
    try:
        files: list[Any] = _snapshot(repo, wanted, UNWANTED, dry_run=True, tqdm_class=meter)
    except HFValidationError as error:
        raise HubError(f"{repo.id} cannot be the name of a model on the hub") from error
    except STRANGE_ANSWERS as error:
        raise _NotTheHubError(str(error)) from error
    if any(file.filename.endswith(".safetensors") for file in files):
        return [file for file in files if not file.filename.endswith((".bin", ".pt"))]
    return files


def parse_repo(name: str) -> Repo:
    """Split `owner/name[@revision]`.

    Raises:
        HubError: if the name looks like a path, or like nothing the hub could hold.
    """
    if name.endswith(SUFFIX):
        raise HubError(f"there is no file {name}")
    if name.startswith((".", "/", "~")) or name.endswith("/") or name.count("/") > 1:
        raise HubError(f"there is no folder {name}")
    repo_id, _, revision = name.partition("@")
    part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    if not re.fullmatch(f"{part}/{part}", repo_id) or (revision == "") == ("@" in name):
        raise HubError(
            f"there is no folder {name!r}, and a model on the hub is named owner/name "
            "or owner/name@revision"
        )
    return Repo(repo_id, revision or constants.DEFAULT_REVISION)


def to_stderr(line: str) -> None:
    """Tell a line to whoever called the library without saying whom to tell."""
    print(line, file=sys.stderr)


class Told(NamedTuple):
    """Who is told about a download; see `fetch`."""

    progress: Progress
    notify: Notify
    before: Callable[[Listing], None] | None


def _fetch_repo(repo: Repo, told: Told, wanted: list[str]) -> Path:
    """Ask the hub what is missing here and download that; without the hub, use the cache."""
    try:
        files = _wanted(repo, wanted)
    except DryRunError as error:
        return _cached(repo, wanted, error.__cause__ or error)
    except _NotTheHubError as error:
        folder = _cached(repo, wanted, error)
        told.notify(f"{_STRANGE} for {repo.name}; the copy in the cache is used")
        return folder
    if not files:
        raise HubError(f"{repo.name} holds no model files ({', '.join(wanted)})")
    unwanted = UNWANTED
    if any(file.filename.endswith(".safetensors") for file in files):
        unwanted = UNWANTED + PICKLES
    total = _listing(files).missing
    pinned = Repo(repo.id, files[0].commit_hash)
    if not total:
        return Path(_snapshot(pinned, wanted, unwanted, local_files_only=True))
    if told.before is not None:
        told.before(_listing(files))
    _check_space(repo, total)
    phase = f"download {repo.name}"
    told.progress(phase, 0, total)
    _download(repo, wanted, unwanted, _meter(told.progress, phase, total))
    told.progress(phase, total, total)
    return Path(_snapshot(pinned, wanted, unwanted, local_files_only=True))


def _snapshot(repo: Repo, wanted: list[str], unwanted: list[str], **options: Any) -> Any:
    """Call `snapshot_download` for the files that we want."""
    return snapshot_download(
        repo.id,
        revision=repo.revision,
        allow_patterns=wanted,
        ignore_patterns=unwanted,
        max_workers=MAX_WORKERS,
        **options,
    )


def _cached(repo: Repo, wanted: list[str], reason: BaseException) -> Path:
    """Return the cached folder, or raise for the reason that the hub could not be asked."""
    try:
        folder = Path(_snapshot(repo, wanted, UNWANTED + PICKLES, local_files_only=True))
        if not any(folder.glob("*.safetensors")):
            folder = Path(_snapshot(repo, wanted, UNWANTED, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise HubError(explain(repo, reason)) from error
    return folder


def _check_space(repo: Repo, total: int) -> None:
    """Refuse a download of `total` bytes that would fill the disk."""
    cache = Path(constants.HF_HUB_CACHE).expanduser().absolute()
    disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    if free < total:
        raise HubError(
            f"{repo.name} needs {total / 1e9:.1f} GB and {cache} has {free / 1e9:.1f} GB left: "
            f"{FREE_SPACE}"
        )


def _download(repo: Repo, wanted: list[str], unwanted: list[str], meter: type["_Meter"]) -> None:
    """Download in a thread, so that Ctrl-C ends it between two chunks and not after the file."""
    pool = ThreadPoolExecutor(max_workers=1)
    job: Future[Any] = pool.submit(_snapshot, repo, wanted, unwanted, tqdm_class=meter)
    try:
        job.result()
    except KeyboardInterrupt:
        meter.cancelled = True
        wait([job], timeout=3)  # seconds for the workers to remove their partial files
        raise
    finally:
        pool.shutdown(wait=False)


class _Meter(tqdm):
    """What huggingface_hub takes for a progress bar: it draws nothing and adds up bytes."""

    cancelled = False
    # The hub counts the same bytes in several bars, received and written: the furthest one counts.
    furthest = 0
    lock = Lock()

    def __init__(self, *args: Any, **kwargs: Any):
        self.counts_bytes = kwargs.get("unit") == "B"
        self.n_bytes = 0
        super().__init__(*args, **{**kwargs, "disable": True})

    def update(self, n: float | None = 1) -> None:
        """Count `n` more bytes."""
        meter = type(self)
        if meter.cancelled:
            raise KeyboardInterrupt
        if not self.counts_bytes:
            return
        with meter.lock:
            self.n_bytes += int(n or 0)
            meter.furthest = max(meter.furthest, self.n_bytes)
            meter.report(meter.furthest)

    @staticmethod
    def report(n_bytes: int) -> None:
        """Tell the caller how many bytes have come in."""


def _meter(progress: Progress, phase: str, total: int) -> type[_Meter]:
    """Return a class, as huggingface_hub wants one, whose bars report to `progress`."""

    def report(n_bytes: int) -> None:
        progress(phase, min(n_bytes, total), total)

    return type("_Meter", (_Meter,), {"report": staticmethod(report), "lock": Lock()})


def _silent(phase: str, done: int, total: int) -> None:
    """Report nothing."""


_STRANGE = (
    f"what answers at {constants.ENDPOINT} is not the hub (a login page of the network, perhaps)"
)


def refuse_strange(repo: Repo) -> HubError:
    """Return the error for an answer that is none of the hub's."""
    return HubError(f"{_STRANGE} for {repo.name}: log in to the network, or check HF_ENDPOINT")


def explain(repo: Repo, error: BaseException) -> str:
    """Say in one line why a model could not be had, and what to do."""
    known = {
        GatedRepoError: f"{repo.name} is gated: accept its terms on its page on the hub, then "
        "log in with `hf auth login` or set HF_TOKEN",
        RepositoryNotFoundError: f"the hub has no model {repo.id}, or it is private: check the "
        "name, or log in with `hf auth login`",
        RevisionNotFoundError: f"{repo.id} has no revision {repo.revision}",
        OfflineModeIsEnabled: f"{repo.name} is not completely in the cache and HF_HUB_OFFLINE "
        "forbids to download it: unset it, or give a local folder",
    }
    for kind, message in known.items():
        if isinstance(error, kind):
            return message
    if isinstance(error, HfHubHTTPError):
        return _explain_status(repo, error.response.status_code)
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        return explain(repo, error.__cause__)
    if isinstance(error, NetworkError):
        return (
            f"the hub ({constants.ENDPOINT}) cannot be reached and {repo.name} is not completely "
            f"in the cache: check the network and try again ({_reason(error)})"
        )
    if isinstance(error, _NotTheHubError | FileMetadataError):
        return str(refuse_strange(repo))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk filled up while {repo.name} was downloaded: {FREE_SPACE}"
    return f"{repo.name} could not be downloaded to {constants.HF_HUB_CACHE}: {_reason(error)}"


def _explain_status(repo: Repo, status: int) -> str:
    """Say in one line what an HTTP status of the hub means."""
    if status in (401, 403):
        return (
            f"the hub refused access to {repo.name} ({status}): log in again with `hf auth login`, "
            "or correct HF_TOKEN"
        )
    return f"the hub answered {status} for {repo.name}: try again later"


def _reason(error: BaseException) -> str:
    """Return the first line of an error, or its kind where it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
