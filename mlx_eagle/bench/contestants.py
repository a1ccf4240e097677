"""The contestants of a benchmark: each is loaded once and generates from token ids.

All share one target, so its weights are in memory once, whatever heads are compared on it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache
from mlx_lm.sample_utils import make_sampler

from mlx_eagle.bench.specs import Spec
from mlx_eagle.decoding.stats import GenerationStats
from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.draft_model import check_same_tokens
from mlx_eagle.sampling.options import MATCH, RATIO
from mlx_eagle.session.request import check_draws
from mlx_eagle.speculation import ON, Speculation
from mlx_eagle.static_tree import Shape
from mlx_eagle.target.load import load_target


class Setting(NamedTuple):
    """How one generation is done; temperature 0 is greedy."""

    max_tokens: int
    ignore_eos: bool
    temperature: float
    seed: int


class Run(NamedTuple):
    """One generation; the fields are those of `metrics.Sample`."""

    tokens: list[int]
    n_timed: int
    seconds: float
    prompt_seconds: float
    stats: dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """One way to decode.

    Attributes:
        name: as the user specified it.
        run: generates from token ids.
        same_draws: its sampled text is to equal plain decoding's too, not only its greedy text.
        engine: the engine whose head it drafts with, if any.
    """

    name: str
    run: Callable[[list[int], Setting], Run]
    same_draws: bool
    engine: Engine | None = None


def make_contestant(
    spec: Spec,
    engine: Engine,
    load_other: Callable[[Engine, str], Engine],
    find: Callable[[str], Path],
) -> Contestant:
    """Return the contestant that a specification names.

    Args:
        spec: the specification.
        engine: the target, with the head that `auto`, chains and trees draft with.
        load_other: returns an engine with the same target and the head that it is given; the
            target is not loaded again.
        find: returns the folder of a model, fetching it if need be.

    Raises:
        EagleError: if what it needs cannot be had or does not fit the target.
    """
    if spec.kind == "plain":
        return Contestant(spec.name, partial(_generate, engine, {"speculate": False}), True)
    if spec.kind == "mlx-lm":
        return Contestant(spec.name, partial(_stock, engine), False)
    if spec.kind == "draft-model":
        draft = _load_draft_model(find(spec.source), engine)
        return Contestant(spec.name, partial(_draft_model, engine, draft, spec.n_draft), False)
    if spec.source:
        engine = load_other(engine, spec.source)
    if engine.head is None:
        raise EagleError(
            f"{spec.name} drafts with a head, and there is none (speculation is "
            f"{engine.info.speculation}); name one with --head, or compare others: --compare mlx-lm"
        )
    if isinstance(spec.shape, Shape):
        engine.target.check_shape(spec.shape)
    if spec.rule == RATIO:
        check_draws(engine.info.head, engine.make_drafter())
    options = {"acceptance": spec.rule, **({"tree": spec.shape} if spec.shape else {})}
    same_draws = spec.rule == MATCH
    return Contestant(spec.title, partial(_generate, engine, options), same_draws, engine)


def _load_draft_model(folder: Path, engine: Engine) -> Any:
    """Return mlx-lm's model for drafting, after checking that it speaks of the same tokens.

    Raises:
        EagleError: if it does not, or mlx-lm cannot draft with it.
    """
    (network, *_), tokenizer = load_target(folder)
    check_same_tokens(tokenizer.get_vocab(), engine.tokenizer.get_vocab())
    for name, model in (("target", engine.target.model), ("draft model", network)):
        if not can_trim_prompt_cache(make_prompt_cache(model)):
            raise EagleError(
                f"mlx-lm drafts with a model only where caches can step back, and the {name}'s "
                "cannot; compare with mlx-lm or heads instead"
            )
    mx.eval(network.parameters())
    return network


def _generate(engine: Engine, options: dict[str, Any], prompt: list[int], setting: Setting) -> Run:
    """Generate with an engine, in a conversation of its own."""
    result = engine.generate(prompt, **options, **setting._asdict())
    stats = result.stats
    n_timed = len(result.tokens) - 1
    seconds, prompt_seconds = stats.generation_seconds, stats.prompt_seconds
    return Run(result.tokens, n_timed, seconds, prompt_seconds, stats.to_dict())


def _stock(engine: Engine, prompt: list[int], setting: Setting) -> Run:
    """Generate as mlx-lm does without drafting."""
    steps = generate_step(
        mx.array(prompt),
        engine.target.model,
        max_tokens=setting.max_tokens,
        sampler=make_sampler(setting.temperature),
    )
    return _drain(((int(token), False) for token, _ in steps), engine, len(prompt), setting)


def _draft_model(
    engine: Engine, draft: Any, n_draft: int, prompt: list[int], setting: Setting
) -> Run:
    """Generate as mlx-lm does with a draft model."""
    steps = speculative_generate_step(
        mx.array(prompt),
        engine.target.model,
        draft,
        num_draft_tokens=n_draft,
        max_tokens=setting.max_tokens,
        sampler=make_sampler(setting.temperature),
    )
    pieces = ((int(token), from_draft) for token, _, from_draft in steps)
    return _drain(pieces, engine, len(prompt), setting, n_draft)


def _drain(
    pieces: Iterator[tuple[int, bool]],
    engine: Engine,
    n_prompt: int,
    setting: Setting,
    n_draft: int = 0,
) -> Run:
    """Run one of mlx-lm's generators to its end and time it.

    Its first round comes with the prompt, so that round's tokens are not timed.
    """
    mx.random.seed(setting.seed)
    mx.reset_peak_memory()
    ends = set() if setting.ignore_eos else set(engine.tokenizer.eos_token_ids)
    tokens: list[int] = []
    drafted: list[bool] = []
    start = first = time.perf_counter()
    for token, from_draft in pieces:
        if not tokens:
            first = time.perf_counter()
        tokens.append(token)
        drafted.append(from_draft)
        if token in ends:
            break
    seconds = time.perf_counter() - first
    n_first = drafted.index(False) + 1 if False in drafted else len(drafted)
    stats = GenerationStats(
        prompt_tokens=n_prompt,
        prompt_seconds=first - start,
        generation_tokens=len(tokens),
        generation_seconds=seconds,
        peak_memory_bytes=mx.get_peak_memory(),
        status=ON if n_draft else Speculation.off("not asked for"),
    )
    # Without drafting the first token comes with the prompt; with it a whole round does.
    _count_rounds(stats, drafted if n_draft else drafted[1:], n_draft, setting.max_tokens)
    unknown = {"draft_seconds": None, "verify_seconds": None, "host_seconds": None}
    return Run(tokens, len(tokens) - n_first, seconds, first - start, stats.to_dict() | unknown)


def _count_rounds(
    stats: GenerationStats, drafted: list[bool], n_draft: int, max_tokens: int
) -> None:
    """Count the rounds of a draft model: each ends with a token that was not drafted."""
    n_accepted, before = 0, 0
    for at, from_draft in enumerate(drafted, start=1):
        n_accepted += from_draft
        if not from_draft or at == len(drafted):
            depth = min(n_draft, max_tokens - before)
            stats.add_round(depth, depth, n_accepted)
            n_accepted, before = 0, at
