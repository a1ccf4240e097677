"""`load`: a model is found, read, paired with its head, and told what rounds cost here."""

from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import maybe_set_recommended_wired_limit

from mlx_eagle.cache.options import WHOLE, KVOptions
from mlx_eagle.calibration.head_health import HeadWatch
from mlx_eagle.calibration.planners import Planners, find_costs
from mlx_eagle.calibration.store import Identity, Records, this_machine
from mlx_eagle.drafters.make import check_fit, make_drafter
from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.errors import EagleError, UnsupportedTargetError
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.files.json_files import read_json
from mlx_eagle.heads.load import Head, load_head
from mlx_eagle.hub.download import Progress, fetch
from mlx_eagle.hub.head_choice import HeadChoice, Notify, choose_head, fingerprint
from mlx_eagle.load_options import LoadOptions
from mlx_eagle.session.limits import Limits, bytes_per_row, device_memory, model_context_length
from mlx_eagle.speculation import ON, Speculation
from mlx_eagle.target.load import load_target, precision
from mlx_eagle.target.self_check import check_kv_options, check_tree_verification
from mlx_eagle.target.target import Target

DEMO = Path(__file__).parent / "demo"
STEPS = 2  # of loading, as progress counts them: the target, then everything


class Found(NamedTuple):
    """What was asked for, found on this machine.

    Attributes:
        name: what the user calls the target.
        folder: where the target is.
        head: which head it gets, or why none.
        is_demo: whether it is the demo pair's target.
    """

    name: str | Path
    folder: Path
    head: HeadChoice
    is_demo: bool


class Pair(NamedTuple):
    """A target, perhaps a head for it, and whether there is speculation."""

    target: Target
    head: Head | None
    status: Speculation


def load(
    model: str | Path | None = None,
    head: str | Path | None = None,
    *,
    progress: Progress | None = None,
    notify: Notify | None = None,
    **options: Any,
) -> Engine:
    """Load a target, and a head for it.

    A head that is not converted is converted once, into a cache folder. A known head that cannot
    be had or used is no error: the target decodes plainly, and `info.speculation` says why.

    Args:
        model: a folder or hub repository that mlx-lm can load; None is the demo pair.
        head: a head, converted or as published, in a folder or on the hub; None is the head that
            is known for the target, "none" is no head.
        progress: called with (phase, done, total): downloads in bytes, then "load" and
            "calibrate" in steps.
        notify: told in one line, beforehand, which known head is downloaded and how large it is,
            and what is converted; None writes to stderr.
        **options: the fields of `LoadOptions`.

    Raises:
        EagleError: if something that was asked for cannot be found, loaded or used together.
        TypeError: if an option does not exist.
    """
    chosen = LoadOptions(**options)
    found = find(model, head, progress, notify)
    pair, tokenizer = _read_pair(found, chosen, progress)
    info, limits = _describe(found, pair), _limits(found, pair, chosen)
    if pair.head is None:
        return Engine(pair.target, tokenizer, None, info, limits=limits)
    planners = _planners(found, pair, info, chosen.calibrate, progress)
    if not (outlook := planners.outlook(0)).is_on:
        info = info._replace(status=outlook)
    return Engine(pair.target, tokenizer, pair.head, info, planners, limits)


def find(
    model: str | Path | None,
    head: str | Path | None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> Found:
    """Return where target and head are, downloaded and converted if need be; see `load`."""
    is_demo = model is None
    if model is None:
        model, head = DEMO / "target", head or DEMO / "head"
    folder = fetch(model, progress=progress)
    choice = choose_head(model, head, folder, progress=progress, notify=notify)
    return Found(model, folder, choice, is_demo)


def _read_pair(found: Found, options: LoadOptions, progress: Progress | None) -> tuple[Pair, Any]:
    """Return target and head with all weights read, and the tokenizer."""
    report = partial(progress, "load") if progress else _silent
    report(0, STEPS)
    network, tokenizer = load_target(found.folder, options.dtype)
    report(1, STEPS)
    maybe_set_recommended_wired_limit()
    pair = pair_up(network, found.head, kv_options(options))
    mx.eval(network.parameters(), pair.head.parameters() if pair.head else [])
    report(2, STEPS)
    return pair, tokenizer


def pair_up(network: nn.Module, choice: HeadChoice, kv: KVOptions = WHOLE) -> Pair:
    """Return the target, and its head if there is one that works.

    A head that does not work leaves nothing on the target.

    Args:
        network: the target as mlx-lm loads it.
        choice: which head, and whether the user named it.
        kv: what the target's caches keep.

    Raises:
        EagleError: if a head that the user named does not work with the target, or the target not
            with such caches.
    """
    pair = _pair_up(network, choice)
    pair.target.kv = kv
    check_kv_options(pair.target)
    return pair


def kv_options(options: LoadOptions) -> KVOptions:
    """Return what the target's caches keep.

    Raises:
        EagleError: if there are no such caches.
    """
    return KVOptions(options.kv_bits, options.kv_group_size, options.max_kv_size)


def _pair_up(network: nn.Module, choice: HeadChoice) -> Pair:
    """Do what `pair_up` does, with caches that keep everything."""
    if choice.folder is None:
        return Pair(_without_head(network), None, Speculation.off(choice.reason))
    try:
        head = load_head(choice.folder)
        return Pair(_with_head(network, head), head, ON)
    except EagleError as error:
        if choice.is_named:
            raise
        reason = f"{choice.name}: {error}"
        return Pair(_without_head(network), None, Speculation.off(reason))


def _with_head(network: nn.Module, head: Head) -> Target:
    """Return the target, tapped for the head; a target that cannot verify trees is refused."""
    target = Target(network, head.config.taps)
    try:
        check_fit(head, target)
        check_tree_verification(target)
    except EagleError:
        target.release()
        raise
    return target


def _without_head(network: nn.Module) -> Target:
    """Return the target for plain decoding, with mlx-lm's own caches where ours do not fit."""
    try:
        target = Target(network)
    except UnsupportedTargetError:
        return Target(network, speculate=False)
    try:
        check_tree_verification(target)
    except UnsupportedTargetError:
        target.release()
        return Target(network, speculate=False)
    return target


def _limits(found: Found, pair: Pair, options: LoadOptions) -> Limits:
    """Return how long conversations may become: as the user says, else as model and device do."""
    context, memory, window = options.max_context, options.memory_limit, options.head_window
    if context is None:
        context = model_context_length(read_json(found.folder / "config.json"))
    if window is None:
        window = pair.head.default_window if pair.head else 0
    memory = device_memory() if memory is None else memory
    return Limits(context, memory, bytes_per_row(pair.target), window)


def _describe(found: Found, pair: Pair) -> EngineInfo:
    """Return what is loaded, in words for a banner."""
    folders = quote(str(found.head.folder)), quote(str(found.folder))
    return EngineInfo(
        target=_name(found.name),
        target_precision=precision(pair.target.model),
        head=_name(found.head.name) if pair.head else "",
        head_precision=precision(pair.head) if pair.head else "",
        status=pair.status,
        device=str(mx.device_info()["device_name"]),
        is_demo=found.is_demo,
        remedy="mlx-eagle doctor {} --target {} --fix".format(*folders),
    )


def _planners(
    found: Found, pair: Pair, info: EngineInfo, calibrate: bool, progress: Progress | None
) -> Planners:
    """Return what plans trees, with the costs of this machine: on record, measured or published."""
    assert pair.head is not None, "only a pair has planners"
    records = _records(found, pair, info)
    drafter = make_drafter(pair.head, pair.target)
    report = partial(progress, "calibrate") if progress else _silent
    costs = find_costs(pair.target, drafter, records, report, may_measure=calibrate)
    watch, chains_only = HeadWatch(info.remedy), pair.target.chains_only
    return Planners(costs, pair.head.max_depth, records, watch, chains_only=chains_only)


def _records(found: Found, pair: Pair, info: EngineInfo) -> Records:
    """Return what is on record of a pair on this machine."""
    assert found.head.folder is not None, "only a pair has records"
    facts = {
        "target": fingerprint(found.folder),
        "target precision": info.target_precision,
        "head": fingerprint(found.head.folder),
        "head precision": info.head_precision,
        "activations": str(pair.target.embedding(mx.array([0])).dtype),
        "KV cache": str(pair.target.kv),
    }
    return Records(cache_folder(), Identity(this_machine(), facts))


def _name(model: str | Path) -> str:
    """Return what to call a model in a banner."""
    demo = {DEMO / "target": "pydoc-llama (demo)", DEMO / "head": "pydoc-eagle3 (demo)"}
    return demo.get(Path(model), str(model))


def _silent(done: int, total: int) -> None:
    """Report nothing."""
