"""`load` and `Engine`: a target, perhaps with a head, ready to generate."""

from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, load_tokenizer, maybe_set_recommended_wired_limit

from mlx_eagle.calibration import Report
from mlx_eagle.drafters import Drafter
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.drafters.parallel import MedusaDrafter, PEagleDrafter
from mlx_eagle.errors import CheckpointError, EagleError, UnsupportedTargetError
from mlx_eagle.head import Head, load_head
from mlx_eagle.hub import Progress, fetch
from mlx_eagle.medusa import MedusaHead
from mlx_eagle.planning import Calibration, Planners, find_costs, measure_costs
from mlx_eagle.probe import check_tree_verification
from mlx_eagle.published import HeadChoice, Notify, cache_folder, choose_head, fingerprint
from mlx_eagle.records import Identity, Records, this_machine
from mlx_eagle.responses import GenerationResult, Responses
from mlx_eagle.session import Prompt, Session
from mlx_eagle.stats import HeadWatch
from mlx_eagle.target import Target

DEMO = Path(__file__).parent / "demo"
DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


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
    ) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self.head = head
        self.info = info
        self.planners = planners or Planners()

    def session(self, system: str | None = None) -> Session:
        """Start a conversation."""
        make = None
        if self.head is not None:
            make = partial(make_drafter, self.head, self.target)

        spoken = self.info.speculation
        return Session(self.target, self.tokenizer, make, spoken, system, self.planners)

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
        self.planners = Planners(costs, drafter.max_depth, known.records, known.watch)
        return costs

    def stream_generate(self, prompt: Prompt, **options: Any) -> Responses:
        """Stream an answer, token by token; see `Session.stream_generate`."""
        return self.session().stream_generate(prompt, **options)

    def generate(self, prompt: Prompt, **options: Any) -> GenerationResult:
        """Return a whole answer; the options are those of `Session.stream_generate`."""
        responses = list(self.stream_generate(prompt, **options))
        last = responses[-1]
        assert last.stats is not None and last.finish_reason is not None, "a stream has an end"
        text = "".join(response.text for response in responses)
        tokens = [response.token for response in responses]
        return GenerationResult(text, tokens, last.finish_reason, last.stats)


def make_drafter(head: Head, target: Target) -> Drafter:
    """Return a drafter with an empty cache of its own."""
    if isinstance(head, MedusaHead):
        return MedusaDrafter(head, target)
    kind = PEagleDrafter if head.config.algorithm == "p-eagle" else EagleDrafter
    return kind(head, target)


def load(
    model: str | Path | None = None,
    head: str | Path | None = None,
    *,
    dtype: str | None = None,
    calibrate: bool = True,
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
        progress: called with (phase, done, total): downloads in bytes, then "load" and
            "calibrate" in steps.
        notify: told in one line, beforehand, which known head is downloaded and how large it is,
            and what is converted; None writes to stderr.

    Raises:
        EagleError: if something that was asked for cannot be found, loaded or used together.
    """
    is_demo = model is None
    if model is None:
        model, head = DEMO / "target", head or DEMO / "head"
    folder = fetch(model, progress=progress)
    choice = choose_head(model, head, folder, progress=progress, notify=notify)
    _report(progress, 0)
    network, tokenizer = load_target(folder, dtype)
    _report(progress, 1)
    maybe_set_recommended_wired_limit()
    target, drafter_head, speculation = _equip(network, choice)
    mx.eval(network.parameters(), drafter_head.parameters() if drafter_head else [])
    _report(progress, 2)
    info = EngineInfo(
        target=_name(model),
        target_precision=_precision(network),
        head=_name(choice.name) if drafter_head else "",
        head_precision=_precision(drafter_head) if drafter_head else "",
        speculation=speculation,
        device=str(mx.device_info()["device_name"]),
        is_demo=is_demo,
        remedy=f"mlx-eagle doctor {quote(str(choice.folder))} --target {quote(str(folder))} --fix",
    )
    if drafter_head is None:
        return Engine(target, tokenizer, None, info)
    records = _records(folder, choice, info, target)
    costs = _costs(target, drafter_head, records, calibrate, progress)
    max_depth = make_drafter(drafter_head, target).max_depth
    planners = Planners(costs, max_depth, records, HeadWatch(info.remedy))
    return Engine(target, tokenizer, drafter_head, _with_prospect(info, planners), planners)


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


def _equip(network: nn.Module, choice: HeadChoice) -> tuple[Target, Head | None, str]:
    """Return the target, its head, and whether there is speculation, or why not.

    Raises:
        EagleError: if a head that the user named does not work with the target.
    """
    if choice.folder is None:
        return _without_head(network), None, f"off: {choice.reason}"
    try:
        head = load_head(choice.folder)
        return _with_head(network, head), head, "on"
    except EagleError as error:
        if choice.is_named:
            raise
        return _without_head(network), None, f"off: {choice.name}: {error}"


def _name(model: str | Path) -> str:
    """Return what to call a model in a banner."""
    demo = {DEMO / "target": "pydoc-llama (demo)", DEMO / "head": "pydoc-eagle3 (demo)"}
    return demo.get(Path(model), str(model))


def _report(progress: Progress | None, step: int) -> None:
    if progress is not None:
        progress("load", step, 2)


def _dtype(name: str | None) -> mx.Dtype | None:
    """Return the type to compute in; None keeps what is stored."""
    if name is None:
        return mx.float32 if mx.default_device() == mx.cpu else None
    if name not in DTYPES:
        raise EagleError(f"dtype is {name!r}; it must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def load_target(folder: Path, dtype: str | None = None) -> tuple[nn.Module, Any]:
    """Load model and tokenizer with mlx-lm's loader; remote code is refused.

    Args:
        folder: the model.
        dtype: as for `load`.

    Raises:
        EagleError: if mlx-lm cannot load it.
    """
    compute_type = _dtype(dtype)
    try:
        network, config = load_model(folder, lazy=True)
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
        )
    except Exception as error:  # mlx-lm, transformers and the tokenizers share no error type
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"{folder} is not a target that mlx-lm can load ({reason})"
        ) from error
    if compute_type is not None:
        network.set_dtype(compute_type)
    return network, tokenizer


def _with_head(network: nn.Module, head: Head) -> Target:
    """Return the target, tapped for the head; a target that cannot verify trees is refused."""
    target = Target(network, head.config.taps)
    check_fit(head, target)
    check_tree_verification(target)
    return target


def _without_head(network: nn.Module) -> Target:
    """Return the target for plain decoding, with mlx-lm's own caches where ours do not fit."""
    try:
        target = Target(network)
        check_tree_verification(target)
    except UnsupportedTargetError:
        return Target(network, speculate=False)
    return target


def check_fit(head: Head, target: Target) -> None:
    """Give the head the target's type, after checking that they belong together.

    Raises:
        CheckpointError: if sizes differ.
    """
    config, sample = head.config, target.embedding(mx.array([0]))
    vocab, hidden = target.vocab_size, sample.shape[-1]
    found = {"hidden size": (config.target_hidden_size, hidden)}
    found["vocabulary"] = (config.target_vocab_size, vocab)
    wrong = [f"{what} {a} (target: {b})" for what, (a, b) in found.items() if a != b]
    if config.hidden_size != hidden and _borrows(head):
        wrong.append(f"own hidden size {config.hidden_size} (target: {hidden})")
    if wrong:
        raise CheckpointError(
            f"the head was made for another target: {', '.join(wrong)}; "
            "give the target that the head was trained for"
        )
    head.set_dtype(sample.dtype)


def _borrows(head: Head) -> bool:
    """Say whether a head uses the target's embedding or output layer, which fix its width."""
    if isinstance(head, MedusaHead):
        return True
    return not (head.config.own_embedding and head.config.own_lm_head)


def _precision(network: nn.Module) -> str:
    """Say how a network's weights are stored, e.g. "8-bit, group 64" or "float32"."""
    kinds = {
        f"{module.bits}-bit, group {module.group_size}"
        for _, module in network.named_modules()
        if isinstance(module, nn.QuantizedLinear)
    }
    if kinds:
        return " and ".join(sorted(kinds))
    largest = max(dict(tree_flatten(network.parameters())).values(), key=lambda array: array.size)
    return str(largest.dtype).removeprefix("mlx.core.")
