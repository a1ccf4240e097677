"""What a request may ask for: one frozen set of options, checked when it is made."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import mlx.core as mx
from mlx_lm.sample_utils import make_logits_processors

from mlx_eagle.decoding.prefill import PREFILL_STEP
from mlx_eagle.errors import EagleError
from mlx_eagle.sampling.grammar import Grammar
from mlx_eagle.sampling.samplers import Sampler, SeededSampler, StockSampler
from mlx_eagle.sampling.token_selector import LogitsProcessor
from mlx_eagle.tree import TreeShape


@dataclass(frozen=True)
class GenerationOptions:
    """How to generate; the names are mlx-lm's where it has one.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 is greedy; see `sampling/samplers.py` for top_p, top_k, min_p and seed.
        sampler: a sampler made for mlx-lm, instead of these; it draws from mlx's own generator,
            and must depend on nothing else but its argument.
        repetition_penalty: divides the logits of recent tokens (arXiv 1909.05858); None: off.
        presence_penalty: subtracted once from the logits of recent tokens; None: off.
        frequency_penalty: subtracted for every recent occurrence of a token; None: off.
        repetition_context_size: tokens that are recent; likewise for the other two.
        logit_bias: what to add to the logit of a token id.
        logits_processors: functions made for mlx-lm, after the penalties: tokens [T] and logits
            [1, V] to logits [1, V]. They see all tokens of prompt and answer so far, are called
            once for every drafted node, and must depend on nothing but their arguments.
        json_schema: the answer is JSON that this schema allows; a dict or JSON text.
        regex: the answer matches this pattern as a whole.
        stop: strings that end the answer; they are not part of its text.
        speculate: False decodes plainly, through the same loop.
        ignore_eos: go on to `max_tokens` whatever the model says.
        tree: the shape of every round's tree; None leaves the choice to the planner.
        logprobs: let every response carry the log-probabilities its token was chosen from.
        overflow: what to do with messages that do not fit into the context: "refuse" them, or
            "truncate" by leaving out the oldest turns, which the statistics count.
        prefill_step_size: prompt tokens per forward.
        progress: called with (prompt tokens done, prompt tokens in all) during prefill.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    sampler: Callable[[mx.array], mx.array] | None = None
    repetition_penalty: float | None = None
    repetition_context_size: int = 20
    presence_penalty: float | None = None
    presence_context_size: int = 20
    frequency_penalty: float | None = None
    frequency_context_size: int = 20
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logits_processors: Sequence[LogitsProcessor] = ()
    json_schema: str | dict[str, Any] | None = None
    regex: str | None = None
    stop: Sequence[str] = ()
    speculate: bool = True
    ignore_eos: bool = False
    tree: TreeShape | None = None
    logprobs: bool = False
    overflow: Literal["refuse", "truncate"] = "refuse"
    prefill_step_size: int = PREFILL_STEP
    progress: Callable[[int, int], None] | None = None

    def __post_init__(self) -> None:
        if self.stop is None:
            object.__setattr__(self, "stop", ())
        if self.logits_processors is None:
            object.__setattr__(self, "logits_processors", ())
        self._check_counts()
        self._check_penalties()
        if isinstance(self.stop, str) or not all(isinstance(text, str) for text in self.stop):
            raise ValueError(f"stop is {self.stop!r}; give a list of strings")
        if callable(self.logits_processors) or not all(map(callable, self.logits_processors)):
            raise ValueError("logits_processors must be a list of functions")
        if self.tree is not None and not isinstance(self.tree, TreeShape):
            raise ValueError(f"tree is {self.tree!r}; give a TreeShape, or None for the planner")
        if self.overflow not in ("refuse", "truncate"):
            raise ValueError(f"overflow is {self.overflow!r}; it must be 'refuse' or 'truncate'")
        self._check_pairs()
        self.make_sampler()

    def _check_counts(self) -> None:
        """Refuse what is no whole number, or too small."""
        sizes = ("repetition_context_size", "presence_context_size", "frequency_context_size")
        least = dict.fromkeys(("max_tokens", "prefill_step_size", *sizes), 1)
        for name, smallest in (least | {"seed": 0, "top_k": 0}).items():
            value = getattr(self, name)
            if type(value) is not int:
                raise ValueError(f"{name} is {value!r}; it must be a whole number")
            if value < smallest:
                raise ValueError(f"{name} is {value}; it must be {smallest} or more")

    def _check_penalties(self) -> None:
        """Refuse penalties and biases that are no numbers."""
        penalties = ("repetition_penalty", "presence_penalty", "frequency_penalty")
        values = {name: getattr(self, name) for name in penalties}
        values |= {f"logit_bias of token {i}": bias for i, bias in self.logit_bias.items()}
        for name, value in values.items():
            if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
                raise ValueError(f"{name} is {value!r}; it must be a finite number")
        if self.repetition_penalty is not None and self.repetition_penalty <= 0:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must be above 0 (1 is off)"
            )

    def _check_pairs(self) -> None:
        """Refuse options that contradict each other."""
        if self.json_schema is not None and self.regex is not None:
            raise ValueError("json_schema and regex were both given; an answer follows one")
        if self.ignore_eos and (self.json_schema is not None or self.regex is not None):
            raise ValueError("ignore_eos was given with a grammar, whose answers end by themselves")
        if self.sampler is not None:
            own = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "seed": 0}
            given = [name for name, default in own.items() if getattr(self, name) != default]
            if given:
                raise ValueError(
                    f"sampler and {given[0]} were both given; a sampler has its own "
                    "(mx.random.seed seeds it)"
                )

    def check_bias(self, vocab_size: int) -> None:
        """Refuse biases of tokens that a target of `vocab_size` tokens does not have.

        Raises:
            EagleError: naming the first of them.
        """
        for token in self.logit_bias:
            if type(token) is not int or not 0 <= token < vocab_size:
                raise EagleError(
                    f"logit_bias names token {token!r}, but the target has {vocab_size} tokens, "
                    "from 0 on"
                )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken, as far as it can be known."""
        return self.temperature == 0 and self.sampler is None

    def make_sampler(self) -> Sampler:
        """Return what chooses tokens from logits."""
        if self.sampler is not None:
            return StockSampler(self.sampler)
        return SeededSampler(self.temperature, self.top_p, self.top_k, self.min_p, self.seed)

    def processors(self) -> list[LogitsProcessor]:
        """Return what changes the logits before: mlx-lm's own penalties, then the caller's."""
        own: list[LogitsProcessor] = make_logits_processors(
            dict(self.logit_bias) or None,
            self.repetition_penalty,
            self.repetition_context_size,
            self.presence_penalty,
            self.presence_context_size,
            self.frequency_penalty,
            self.frequency_context_size,
        )
        return [*own, *self.logits_processors]

    def grammar(self) -> Grammar | None:
        """Return what constrains the answer, or None."""
        if self.json_schema is not None:
            return Grammar.json_schema(self.json_schema)
        return None if self.regex is None else Grammar.regex(self.regex)
