"""Which head a target gets, and the conversion of a published one, made once.

Conversions (made by `convert/`) are kept in the cache folder, so that a published head is as easy
to use as a converted one.
"""

import hashlib
import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from mlx_eagle.errors import EagleError, HubError
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.heads.config import FORMAT_VERSION, MODEL_TYPE
from mlx_eagle.hub.download import Notify, Progress, fetch, to_stderr
from mlx_eagle.hub.known_heads import KnownHead, default_head, known_heads, original_of
from mlx_eagle.hub.native_mtp import (
    OWN,
    PREFIX,
    find_own_layer,
    has_layer,
    norm_settings,
)
from mlx_eagle.hub.packaged import fetch_packaged, find_packaged

NO_HEAD = "none"
DRAFT_MODEL = "draft:"  # stands before the name of a model that drafts
NGRAM, AND_NGRAM = "ngram", "+ngram"  # lookup instead of a head; beside the one named before it
LOOKUP = "n-gram lookup"  # in banners


class HeadChoice(NamedTuple):
    """The head that a target gets.

    Attributes:
        folder: the converted head, or the draft model; None for none.
        name: what the user, or the table of known heads, calls it.
        reason: why there is none.
        is_named: the user asked for this head, so that it has to work.
        is_draft_model: it is a language model that drafts.
        has_lookup: whether tokens are looked up in the text too, or, without a folder, only that.
    """

    folder: Path | None
    name: str = ""
    reason: str = ""
    is_named: bool = False
    is_draft_model: bool = False
    has_lookup: bool = False

    @property
    def drafts(self) -> bool:
        """Whether there is anything to draft with."""
        return self.folder is not None or self.has_lookup


def choose_head(
    model: str | Path,
    head: str | Path | None,
    folder: Path,
    *,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> HeadChoice:
    """Return the head that was asked for, or else the one that is known for the target.

    A known head that cannot be had is no error: the choice says why there is none.

    Args:
        model: the target, as the user named it.
        head: a folder or a hub name; "none" for no head; "mtp" for the multi-token prediction
            layer of the target itself; `draft:NAME` for a draft model, named as targets are; None
            for the known one, else that layer if the target's files hold it; "ngram" for n-gram
            lookup, which "+ngram" after a head, or alone after the known one, joins to it.
        folder: where the target is.
        progress: as for `hub.fetch`.
        notify: is told in one line what is about to be downloaded or converted, and how large it
            is; None writes that to stderr.

    Raises:
        EagleError: if a head that was asked for cannot be had.
    """
    notify = notify or to_stderr
    if head == NO_HEAD:
        return HeadChoice(None, reason="no head was wanted")
    if head == NGRAM:
        return HeadChoice(None, LOOKUP, is_named=True, has_lookup=True)
    if (beside := head_beside(head)) != head:
        return and_lookup(choose_head(model, beside, folder, progress=progress, notify=notify))
    if (name := draft_model_of(head)) is not None:
        found = _find_model(name, progress, notify)
        return HeadChoice(found, str(head), is_named=True, is_draft_model=True)
    if head is not None:
        wanted = find_own_layer(model, folder) if head == OWN else head
        source = fetch(wanted, progress=progress, notify=notify)
        return HeadChoice(prepare_head(source, folder, notify=notify), str(wanted), is_named=True)
    known = default_head(model)
    if known is None and has_layer(folder):
        return _own_layer(folder, notify)
    if known is None:
        return HeadChoice(None, reason=_why_none(model))
    try:
        report = _announced(known, model, progress, notify)
        source = fetch(known.repo, progress=report, notify=notify)
        return HeadChoice(prepare_head(source, folder, notify=notify), known.repo)
    except EagleError as error:
        about = "" if isinstance(error, HubError) else f"{known.repo}: "
        return HeadChoice(None, reason=f"{about}{error}")


def head_beside(head: str | Path | None) -> str | Path | None:
    """Return which head a name asks for beside n-gram lookup; the name itself without lookup."""
    if head is None or not str(head).endswith(AND_NGRAM):
        return head
    return str(head).removesuffix(AND_NGRAM) or None


def draft_model_of(head: str | Path | None) -> str | None:
    """Return the draft model that a head's name asks for; None for another head."""
    head = head_beside(head)
    is_model = isinstance(head, str) and head.startswith(DRAFT_MODEL)
    return str(head).removeprefix(DRAFT_MODEL) if is_model else None


def _find_model(name: str, progress: Progress | None, notify: Notify) -> Path:
    """Return the folder of a model that is named as targets are."""
    packaged = find_packaged(name)
    if packaged is not None:
        return fetch_packaged(packaged, progress or (lambda *_: None), notify)
    return fetch(name, progress=progress, notify=notify)


def _own_layer(folder: Path, notify: Notify) -> HeadChoice:
    """Return the layer that the files of a target hold; nobody asked for it."""
    try:
        source = fetch(f"{PREFIX}{folder}", notify=notify)
        return HeadChoice(prepare_head(source, folder, notify=notify), f"{PREFIX}{folder.name}")
    except EagleError as error:
        return HeadChoice(None, reason=f"its multi-token prediction layer: {error}")


def and_lookup(choice: HeadChoice) -> HeadChoice:
    """Return a head with lookup beside it; without the head it is lookup alone."""
    name = f"{choice.name} + {LOOKUP}" if choice.folder else LOOKUP
    return choice._replace(name=name, has_lookup=True)


def prepare_head(
    folder: Path, target: Path, *, bits: int | None = 4, notify: Notify | None = None
) -> Path:
    """Return a converted head: the folder itself if it is one, else its conversion in the cache.

    Args:
        folder: a head, converted or as published.
        target: folder of the target that it drafts for.
        bits: per weight of the conversion; None keeps the published type.
        notify: is told before a conversion; None is silent.

    Raises:
        EagleError: if the head cannot be converted for this target.
    """
    # Only for a head that needs it: what converts heads takes a second to import.
    from mlx_eagle.files.folders import source_name
    from mlx_eagle.files.json_files import read_json

    if read_json(folder / "config.json").get("model_type") == MODEL_TYPE:
        return folder
    read_json(target / "config.json")  # refused here if it is missing, or no file
    settings = norm_settings(folder, original_of(target), notify or to_stderr)
    name = re.sub(r"[^A-Za-z0-9._-]+", "--", source_name(folder)).strip(".-")[:80] or "head"
    out = cache_folder() / "heads" / f"{name}-{_identify(folder, target, bits, settings)[:16]}"
    if not _is_whole(out):
        if notify is not None:
            notify(f"converting {source_name(folder)}, once; it is kept in {out}")
        _convert(folder, target, out, bits, settings)
    return out


def _convert(
    folder: Path, target: Path, out: Path, bits: int | None, settings: dict[str, Any]
) -> None:
    """Convert a head to `out`, unless another process does it first: the results are equal."""
    from mlx_eagle.convert.heads import convert_head

    try:
        convert_head(folder, target, out, bits=bits, settings=settings)
    except EagleError:
        if not _is_whole(out):
            raise


def _is_whole(out: Path) -> bool:
    """Say whether a conversion is there; folders appear whole, but users tidy up in caches.

    Raises:
        EagleError: if a part of it is missing.
    """
    missing = [n for n in ("config.json", "model.safetensors") if not (out / n).is_file()]
    if missing and out.is_dir():
        raise EagleError(f"{out} lacks {missing[0]}: remove the folder, it will be made again")
    return not missing


def _identify(folder: Path, target: Path, bits: int | None, settings: dict[str, Any]) -> str:
    """Return a name for all that a conversion depends on: its inputs, its precision, our code."""
    facts = {
        "code": [FORMAT_VERSION, metadata.version("mlx-eagle")],
        "bits": bits,
        "files": _contents(folder),
        "configs": [_sha256(path / "config.json") for path in (folder, target)],
    } | ({"settings": settings} if settings else {})
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def fingerprint(folder: Path) -> str:
    """Return a name for a model's weights and configuration as they are now."""
    kept = [part for part in _contents(folder) if part[0].endswith((".safetensors", ".json"))]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:24]


def _contents(folder: Path) -> list[tuple[str, int, str]]:
    """Return name, size and identity of every file of a folder."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    return [(file.name, file.stat().st_size, _content_id(file)) for file in files]


def _content_id(file: Path) -> str:
    """Return the hub's checksum of a file in its cache; of another, when it was last written."""
    if file.is_symlink() and (blob := Path(os.readlink(file))).parent.name == "blobs":
        return blob.name
    return str(file.stat().st_mtime_ns)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _announced(
    known: KnownHead, model: str | Path, progress: Progress | None, notify: Notify
) -> Progress:
    """Return a progress callback whose first call, before the first byte, tells the user."""
    is_said = False

    def report(phase: str, done: int, total: int) -> None:
        nonlocal is_said
        if not is_said:
            is_said = True
            notify(
                f"{known.repo} is the known head for {model}: fetching {total / 1e6:,.1f} MB "
                f"(head {NO_HEAD} goes without)"
            )
        if progress is not None:
            progress(phase, done, total)

    return report


def _why_none(model: str | Path) -> str:
    """Say why a target gets no head although none was forbidden."""
    if heads := known_heads(model):
        return f"{heads[0].repo} is {heads[0].status}: {heads[0].reason}"
    is_folder = os.path.isdir(os.path.expanduser(model))
    return "no head was given" if is_folder else f"no head is known for {model}"
