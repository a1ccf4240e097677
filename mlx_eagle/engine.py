"""`load` and `Engine`: a target, perhaps with a head, ready to generate."""

import copy
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.utils import maybe_set_recommended_wired_limit

from mlx_eagle.cache.options import KVOptions
from mlx_eagle.calibration.head_health import HeadWatch
from mlx_eagle.calibration.measure import Report
from mlx_eagle.calibration.planners import Calibration, Planners, find_costs, measure_costs
from mlx_eagle.calibration.store import Identity, Records, this_machine
from mlx_eagle.drafters.base import Drafter
from mlx_eagle.drafters.make import make_drafter
from mlx_eagle.errors import EagleError
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.files.json_files import read_json
from mlx_eagle.heads.eagle import EagleHead, default_head_window
from mlx_eagle.heads.load import Head
from mlx_eagle.hub.download import Progress, fetch
from mlx_eagle.hub.head_choice import HeadChoice, Notify, choose_head, fingerprint
from mlx_eagle.pairing import equip
from mlx_eagle.sampling.grammar import Constraint, Vocabulary
from mlx_eagle.session.limits import Limits, bytes_per_row, device_memory, model_context_length
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.prompt import Prompt
from mlx_eagle.session.request import Resources
from mlx_eagle.session.responses import GenerationResult, Responses
from mlx_eagle.session.session import Session
from mlx_eagle.session.session_file import identify
from mlx_eagle.target.load import load_target, precision
from mlx_eagle.target.self_check import check_kv_options
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree

DEMO = Path(__file__).parent / "demo"


class EngineInfo(NamedTuple):
    """What is loaded, in words for a banner."""

    target: str
    target_precision: str
    head: str
    head_precision: str
    speculation: str
    device: str
    is_demo: bool
    remedy: str = ""  # the command that finds out why a head drafts badly


class Engine:
    """A loaded target and head; conversations share them and keep their own caches.

    MLX ties arrays to the thread that made them: load and generate on the same thread.
    """

    def __init__(
        self,
        target: Target,
        tokenizer: Any,
        head: Head | None,
        info: EngineInfo,
        planners: Planners | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self.head = head
        self.info = info
        self.planners = planners or Planners(chains_only=target.chains_only)
        self.limits = limits or Limits()
        self._variants: dict[KVOptions, Engine] = {}

    def session(self, system: str | None = None) -> Session:
        """Start a conversation."""
        return Session(self._resources(), system)

    def load_session(self, path: str | Path) -> Session:
        """Return a conversation that was saved with `Session.save`, ready to go on.

        Raises:
            EagleError: if the file is damaged, or of another target, head or version.
        """
        return Session.load(path, self._resources())

    def with_kv(self, kv: KVOptions) -> "Engine":
        """Return an engine with the same weights whose conversations keep what `kv` says.

        Raises:
            UnsupportedTargetError: if the target's code cannot read such caches.
        """
        if kv == self.target.kv:
            return self
        if kv not in self._variants:
            self._variants[kv] = self._variant(kv)
        return self._variants[kv]

    def _variant(self, kv: KVOptions) -> "Engine":
        """Return an engine with the same weights and other caches."""
        target = copy.copy(self.target)
        target.kv = kv
        check_kv_options(target)
        limits = self.limits._replace(bytes_per_row=bytes_per_row(target))
        known = self.planners
        # What rounds cost with such a cache is learnt apart, and not put on record as this one's.
        planners = Planners(
            known.calibration, known.max_depth, watch=known.watch, chains_only=target.chains_only
        )
        return Engine(target, self.tokenizer, self.head, self.info, planners, limits)

    def _resources(self) -> Resources:
        """Return what the conversations share."""
        return Resources(
            self.target,
            self.tokenizer,
            self._make_drafter(),
            self.info.speculation,
            self.planners,
            self.limits,
            self._constrain,
            lambda: self._identity,
        )

    def _make_drafter(self) -> Callable[[], Drafter] | None:
        """Return what makes a drafter for a new conversation; None without a head."""
        if self.head is None:
            return None
        return partial(make_drafter, self.head, self.target, self.limits.head_window)

    @cached_property
    def _identity(self) -> dict[str, str]:
        """What a saved conversation must have been computed with."""
        head = identify(self.head) if self.head is not None else "none"
        return {
            "target": identify(self.target.model),
            "head": head,
            "KV cache": str(self.target.kv),
            "head window": str(self.limits.head_window or "none"),
        }

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        """The tokens as grammars see them."""
        logits = self.target.verify(DraftTree.chain(mx.array([0])), self.target.make_cache()).logits
        return Vocabulary(self.tokenizer, logits.shape[-1])

    def _constrain(self, options: GenerationOptions) -> Constraint | None:
        """Return what constrains an answer, or None."""
        grammar = options.grammar()
        return None if grammar is None else self._vocabulary.constraint(grammar)

    def calibrate(self, report: Report | None = None) -> Calibration:
        """Measure anew what rounds cost on this machine, and keep it for later runs.

        Args:
            report: called with (steps done, steps in all).

        Raises:
            EagleError: if there is no head, so that nothing is drafted.
        """
        if self.head is None:
            raise EagleError(
                f"there is nothing to calibrate: speculation is {self.info.speculation}"
            )
        drafter = make_drafter(self.head, self.target)
        costs = measure_costs(self.target, drafter, self.planners.records, report)
        known = self.planners
        chains_only = self.target.chains_only
        self.planners = Planners(
            costs, drafter.max_depth, known.records, known.watch, chains_only=chains_only
        )
        return costs

    def stream_generate(self, prompt: Prompt, **options: Any) -> Responses:
        """Stream an answer, token by token; see `Session.stream_generate`."""
        return self.session().stream_generate(prompt, **options)

    def generate(self, prompt: Prompt, **options: Any) -> GenerationResult:
        """Return a whole answer; the options are those of `Session.stream_generate`."""
        text, tokens, logprobs = "", [], []
        for response in self.stream_generate(prompt, **options):
            text += response.text
            tokens.append(response.token)
            logprobs.append(response.logprob)
        assert response.stats is not None and response.finish_reason is not None, "it has an end"
        known = [p for p in logprobs if p is not None] if options.get("logprobs") else None
        return GenerationResult(text, tokens, response.finish_reason, response.stats, known)


def choose_window(head: Head | None) -> int:
    """Return how many tokens a head attends to where nobody has said; 0 for all."""
    return default_head_window(head.config) if isinstance(head, EagleHead) else 0


def _check_counts(counts: dict[str, int | None], least: int) -> None:
    """Refuse numbers that are none, or too small; None is a choice left open."""
    for name, value in counts.items():
        if value is not None and (type(value) is not int or value < least):
            raise EagleError(f"{name} is {value!r}; it must be a whole number from {least} on")


def load(
    model: str | Path | None = None,
    head: str | Path | None = None,
    *,
    dtype: str | None = None,
    calibrate: bool = True,
    kv_bits: int | None = None,
    kv_group_size: int = 64,
    max_kv_size: int | None = None,
    head_window: int | None = None,
    max_context: int | None = None,
    memory_limit: int | None = None,
    progress: Progress | None = None,
    notify: Notify | None = None,
) -> Engine:
    """Load a target, and a head for it.

    A head that is not converted is converted once, into a cache folder. A known head that cannot
    be had or used is no error: the target decodes plainly, and `info.speculation` says why.

    Args:
        model: a folder or hub repository that mlx-lm can load; None is the demo pair.
        head: a head, converted or as published, in a folder or on the hub; None is the head that
            is known for the target, "none" is no head.
        dtype: "float32", "float16" or "bfloat16" for everything that is not quantized; None
            keeps the stored type on a GPU and takes float32 on a CPU, where 16 bits are slow.
        calibrate: measure what rounds cost on this machine if that is not on record yet, for a
            few seconds; otherwise published costs stand in, corrected as they prove wrong.
        kv_bits: 8 or 4 quantizes every row of the target's KV cache as it is written, drafted rows
            too, so that speculation changes nothing; that takes less memory.
        kv_group_size: numbers that share a scale in it.
        max_kv_size: rows that the target's cache keeps: the first four and the newest.
        head_window: tokens that the head attends to, so that drafting stays as good and as cheap
            as it was on the texts that the head was trained on; 0 is all of them, None is chosen
            for the head.
        max_context: tokens that a conversation may have; None is what the model was made for.
        memory_limit: bytes that MLX may use before a conversation is refused or ended; None is
            what the device recommends.
        progress: called with (phase, done, total): downloads in bytes, then "load" and
            "calibrate" in steps.
        notify: told in one line, beforehand, which known head is downloaded and how large it is,
            and what is converted; None writes to stderr.

    Raises:
        EagleError: if something that was asked for cannot be found, loaded or used together.
    """
    _check_counts({"max_context": max_context, "memory_limit": memory_limit}, 1)
    _check_counts({"head_window": head_window}, 0)
    is_demo = model is None
    if model is None:
        model, head = DEMO / "target", head or DEMO / "head"
    folder = fetch(model, progress=progress)
    choice = choose_head(model, head, folder, progress=progress, notify=notify)
    _report(progress, 0)
    network, tokenizer = load_target(folder, dtype)
    _report(progress, 1)
    maybe_set_recommended_wired_limit()
    kv = KVOptions(kv_bits, kv_group_size, max_kv_size)
    target, drafter_head, speculation = equip(network, choice, kv)
    mx.eval(network.parameters(), drafter_head.parameters() if drafter_head else [])
    _report(progress, 2)
    info = EngineInfo(
        target=_name(model),
        target_precision=precision(network),
        head=_name(choice.name) if drafter_head else "",
        head_precision=precision(drafter_head) if drafter_head else "",
        speculation=speculation,
        device=str(mx.device_info()["device_name"]),
        is_demo=is_demo,
        remedy=f"mlx-eagle doctor {quote(str(choice.folder))} --target {quote(str(folder))} --fix",
    )
    window = choose_window(drafter_head) if head_window is None else head_window
    limits = Limits(
        model_context_length(read_json(folder / "config.json"))
        if max_context is None
        else max_context,
        device_memory() if memory_limit is None else memory_limit,
        bytes_per_row(target),
        window,
    )
    if drafter_head is None:
        return Engine(target, tokenizer, None, info, limits=limits)
    records = _records(folder, choice, info, target)
    costs = _costs(target, drafter_head, records, calibrate, progress)
    max_depth = make_drafter(drafter_head, target).max_depth
    watch = HeadWatch(info.remedy)
    planners = Planners(costs, max_depth, records, watch, chains_only=target.chains_only)
    info = _with_prospect(info, planners)
    return Engine(target, tokenizer, drafter_head, info, planners, limits)


def _with_prospect(info: EngineInfo, planners: Planners) -> EngineInfo:
    """Return the words for a banner, which say so where drafting could not pay on this machine."""
    planner = planners.planner(0.0)
    hopeless = planner.is_hopeless(0)
    return info._replace(speculation=f"off: {planner.why_hopeless(0)}") if hopeless else info


def _records(folder: Path, choice: HeadChoice, info: EngineInfo, target: Target) -> Records:
    """Return what is on record of a pair on this machine."""
    assert choice.folder is not None, "only a pair has records"
    pair = {
        "target": fingerprint(folder),
        "target precision": info.target_precision,
        "head": fingerprint(choice.folder),
        "head precision": info.head_precision,
        "activations": str(target.embedding(mx.array([0])).dtype),
        "KV cache": str(target.kv),
    }
    return Records(cache_folder(), Identity(this_machine(), pair))


def _costs(
    target: Target, head: Head, records: Records, may_measure: bool, progress: Progress | None
) -> Calibration:
    """Return what rounds cost with a pair: on record, measured, or published."""

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress("calibrate", done, total)

    drafter = make_drafter(head, target)
    return find_costs(target, drafter, records, report, may_measure=may_measure)


def _name(model: str | Path) -> str:
    """Return what to call a model in a banner."""
    demo = {DEMO / "target": "pydoc-llama (demo)", DEMO / "head": "pydoc-eagle3 (demo)"}
    return demo.get(Path(model), str(model))


def _report(progress: Progress | None, step: int) -> None:
    if progress is not None:
        progress("load", step, 2)
