"""Where a contestant's text differs from plain decoding's: a near-tie, or a bug.

In 16 bits or on a GPU a row of a wide pass rounds differently from a row alone, so two tokens that
the target finds equally good may change places; nothing else may. The judge is mlx-lm's own plain
pass over the text that both have in common.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
from mlx_lm.generate import generate_step

from mlx_eagle.bench.measure import seed_of
from mlx_eagle.bench.metrics import Sample
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.target.target import Target
from mlx_eagle.tree import DraftTree

# Logits that rounding can explain. Logits lie around 16 to 32, where neighbours are 0.000002
# (float32), 0.016 (float16) and 0.125 (bfloat16) apart, and errors add up over the layers.
TOLERANCES = {mx.float32: 1e-3, mx.float16: 0.1, mx.bfloat16: 0.5}

HOPELESS = 1e4  # no finite logits are so far apart

NEAR_TIE = "near-tie"
BUG = "BUG"

Judge = Callable[[Sample, int, int, int], "Verdict"]


class Verdict(NamedTuple):
    """How far apart the target finds two tokens, and how far rounding could move them: logits."""

    gap: float
    tolerance: float


class Difference(NamedTuple):
    """The first place at which two texts differ.

    Attributes:
        kind: "near-tie" or "BUG".
        contestant: whose text differs from plain decoding's.
        temperature: of both.
        prompt_id: index of the prompt.
        position: index of the token among the generated ones.
        expected: plain decoding's token; None where its text is over.
        found: the contestant's token; None where its text is over.
        gap: how much one of the two logits lacks to be chosen; None where a text is over.
        tolerance: the largest gap that is a near-tie.
    """

    kind: str
    contestant: str
    temperature: float
    prompt_id: int
    position: int
    expected: int | None
    found: int | None
    gap: float | None
    tolerance: float | None


class Comparison(NamedTuple):
    """How many texts were compared with plain decoding's, and where they differ."""

    n_compared: int
    differences: list[Difference]

    @property
    def bugs(self) -> list[Difference]:
        """The differences that rounding does not explain."""
        return [d for d in self.differences if d.kind == BUG]


def compare(samples: Sequence[Sample], baseline: str, exact: set[str], judge: Judge) -> Comparison:
    """Compare every text with the baseline's first text for the same prompt.

    Args:
        samples: all generations.
        baseline: the contestant that is right; its later repeats are compared too.
        exact: the contestants whose sampled text has to be equal; of the others only the greedy
            text is compared.
        judge: called with (the baseline's sample, position, expected token, found token).
    """
    reference: dict[tuple[float, int], Sample] = {}
    for sample in samples:
        if sample.contestant == baseline:
            reference.setdefault((sample.temperature, sample.prompt_id), sample)
    n_compared, found = 0, {}
    for sample in samples:
        if sample.temperature > 0 and sample.contestant not in exact:
            continue
        plain = reference[sample.temperature, sample.prompt_id]
        if sample is plain:
            continue
        n_compared += 1
        position = first_difference(plain.tokens, sample.tokens)
        if position is not None:
            key = (sample.contestant, sample.temperature, sample.prompt_id, position)
            if key not in found:
                found[key] = _classify(plain, sample, position, judge)
    return Comparison(n_compared, sorted(found.values()))


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Return the first position at which two lists of tokens differ, or None if they are equal."""
    for position, (a, b) in enumerate(zip(expected, found, strict=False)):
        if a != b:
            return position
    return None if len(expected) == len(found) else min(len(expected), len(found))


def _classify(plain: Sample, sample: Sample, position: int, judge: Judge) -> Difference:
    """Return the difference at `position`; a text that ends early is a bug."""
    tokens = [
        text[position] if position < len(text) else None for text in (plain.tokens, sample.tokens)
    ]
    kind, gap, tolerance = BUG, None, None
    expected, found = tokens
    if expected is not None and found is not None:
        gap, tolerance = judge(plain, position, expected, found)
        kind = NEAR_TIE if gap <= tolerance else BUG
    where = (sample.contestant, sample.temperature, sample.prompt_id, position)
    return Difference(kind, *where, expected, found, gap, tolerance)


def judge_by(model: Any, ids_of: Callable[[float, int], list[int]], seed: int) -> Judge:
    """Return a judge that asks the model itself, by mlx-lm's own code.

    Args:
        model: an mlx-lm model.
        ids_of: returns the token ids of a prompt; called with (temperature, its index).
        seed: of the run; prompt i draws with seed + i.
    """

    def logits_after(context: list[int]) -> mx.array:
        found: mx.array = next(generate_step(mx.array(context), model, max_tokens=1))[1]
        return found  # [V]

    return _judge(logits_after, ids_of, seed)


def judge_on_hosts(target: Target, ids_of: Callable[[float, int], list[int]], seed: int) -> Judge:
    """Return a judge for a target that is divided among hosts: all of them run its pass.

    Args:
        target: rank 0's.
        ids_of: as for `judge_by`.
        seed: likewise.
    """

    def logits_after(context: list[int]) -> mx.array:
        tokens, cache = mx.array(context, dtype=mx.int32), target.make_cache()
        target.extend(tokens[:-1], cache)
        return target.forward(tokens[-1:], cache).logits[0]  # [V]

    return _judge(logits_after, ids_of, seed)


def _judge(
    logits_after: Callable[[list[int]], mx.array],
    ids_of: Callable[[float, int], list[int]],
    seed: int,
) -> Judge:
    """Return a judge that goes by the logits [V] after a text."""

    def judge(plain: Sample, position: int, expected: int, found: int) -> Verdict:
        context = ids_of(plain.temperature, plain.prompt_id) + plain.tokens[:position]
        logits = logits_after(context)
        sampler = SeededSampler(plain.temperature, seed=seed_of(seed, plain.prompt_id))
        gap = find_gap(logits, sampler, len(context) - 1, (expected, found))
        return Verdict(gap, tolerance_of(logits))

    return judge


def tolerance_of(logits: mx.array) -> float:
    """Return the largest gap that rounding explains; logits: [V]."""
    return TOLERANCES.get(logits.dtype, TOLERANCES[mx.float32])


def find_gap(
    logits: mx.array, sampler: SeededSampler, position: int, tokens: tuple[int, int]
) -> float:
    """Return how much must be added to one of two tokens' logits before the other way is chosen.

    For greedy decoding that is the difference of the two logits, where one is the largest. For
    sampled text the draw at this position counts as well.

    Args:
        logits: [V], after the token at `position`.
        sampler: what chooses.
        position: of the newest token, prompt included.
        tokens: both candidates; one of them is what the sampler chooses, or neither is.
    """
    return max(_lacking(logits.astype(mx.float32), sampler, position, t) for t in tokens)


def _lacking(logits: mx.array, sampler: SeededSampler, position: int, token: int) -> float:
    """Return the least addition to a token's logit with which it is chosen; 0 if it is anyway."""
    root = DraftTree.chain(mx.array([token], dtype=mx.int32))
    unit = mx.arange(logits.shape[-1]) == token  # [V]

    def is_chosen(added: float) -> bool:
        chosen = sampler((logits + unit * added)[None], root, position)
        return bool(chosen.item() == token)

    if is_chosen(0.0):
        return 0.0
    low, high = 0.0, 1e-3
    while not is_chosen(high):
        low, high = high, 2 * high
        if high > HOPELESS:
            return high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if is_chosen(middle) else (middle, high)
    return high
