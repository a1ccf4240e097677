"""n-alpha of the answers that plain decoding gave in a run: teacher-forced, on their tokens alone.

At every token of an answer the head drafts a chain from its own states, and step n counts where its
likeliest token is the one that the target wrote, given the true tokens before. Prompts and chat
templates are left out: their tokens are easier, so they flatter a head. A draft model reads tokens
alone, so what it foresees of a token is the same at every step.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import mlx.core as mx

from mlx_eagle.bench.asked import Asked
from mlx_eagle.bench.contestants import Contestant
from mlx_eagle.bench.kept import Kept
from mlx_eagle.bench.measure import Report, engines_of
from mlx_eagle.bench.metrics import ALL, Alphas, Sample
from mlx_eagle.bench.prompts import BenchPrompt
from mlx_eagle.doctor.score import Evidence, draft_hits
from mlx_eagle.engine import Engine
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.heads.load import Head

STEPS = 6  # n from 0 to 5
PIECE = 512  # tokens that a draft model reads in one forward


class DraftScore(NamedTuple):
    """What a head would have drafted of one answer: by step, positions that are right, and all."""

    head: str
    temperature: float
    prompt_id: int
    n_right: list[int]
    n_positions: list[int]


def score_answers(
    contestants: Sequence[Contestant],
    asked: Asked,
    samples: Sequence[Sample],
    report: Report,
    kept: Kept | None = None,
) -> list[DraftScore]:
    """Return the scores of every head on every answer of plain decoding.

    Args:
        contestants: plain decoding first; those that share a head are one.
        asked: the prompts, with the answers that later turns go on after.
        samples: all generations.
        report: called with (answers done, answers in all).
        kept: scores of this run that are there already, and where new ones are kept.
    """
    plain = [s for s in samples if s.contestant == contestants[0].name and s.repeat == 0]
    # What is looked up has no steps, alone or beside others: it is not scored.
    engines = [e for e in engines_of(contestants) if isinstance(e.head, Head | DraftModel)]
    turns = [(engine, sample) for engine in engines for sample in plain]
    scores = []
    for done, (engine, sample) in enumerate(turns):
        report(done, len(turns))
        where = (engine.info.head, sample.temperature, sample.prompt_id)
        score = kept.find_score(where) if kept else None
        if score is None:
            ids = asked.ids(sample.temperature, sample.prompt_id)
            score = _score(engine, ids, sample.tokens)
            if kept:
                kept.add_score(where, score)
        scores.append(DraftScore(*where, *score))
    report(len(turns), len(turns))
    return scores


def _score(engine: Engine, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    """Return, by step, at how many positions of an answer the head is right, and of how many."""
    head, target = engine.head, engine.target
    assert isinstance(head, Head | DraftModel), "others are not scored"
    tokens = [*prompt, *answer]
    if isinstance(head, DraftModel):
        right = _foreseen(head, tokens)[len(prompt) - 1 :]
        steps = [right[n:] for n in range(STEPS)]
        return [sum(step) for step in steps], [len(step) for step in steps]
    taps = target.extend(mx.array(tokens[:-1], dtype=mx.int32), target.make_cache())
    assert taps is not None, "a target with a head is tapped"
    parts = mx.split(taps, len(target.taps), axis=-1)
    text = Evidence(tokens, len(prompt), dict(zip(target.taps, parts, strict=True)))
    hits = draft_hits(head, target, text, min(STEPS, head.max_depth))
    return [int(step.sum()) for step in hits], [len(step) for step in hits]


def _foreseen(model: DraftModel, tokens: list[int]) -> list[bool]:
    """Return, for every token of a text but the first, whether it is the model's likeliest one."""
    cache, found = model.make_cache(), list[bool]()
    for start in range(0, len(tokens) - 1, PIECE):
        piece = tokens[start : min(start + PIECE, len(tokens) - 1)]
        logits = model(mx.array(piece, dtype=mx.int32), cache)
        cache.commit(range(len(piece)))
        likeliest = cast(list[int], logits.argmax(-1).tolist())
        truth = tokens[start + 1 : start + 1 + len(piece)]
        found += [a == b for a, b in zip(likeliest, truth, strict=True)]
    return found


def alphas_of(scores: Sequence[DraftScore], prompts: Sequence[BenchPrompt]) -> list[Alphas]:
    """Return n-alpha per head and temperature: by category, by data set, and over all.

    Args:
        scores: of all answers.
        prompts: that were answered.
    """
    found = []
    for head, temperature in dict.fromkeys((s.head, s.temperature) for s in scores):
        own = [s for s in scores if (s.head, s.temperature) == (head, temperature)]
        names = dict.fromkeys(name for s in own for name in _groups(prompts[s.prompt_id]))
        for name in sorted(names, key=lambda name: name == ALL):
            group = [s for s in own if name in _groups(prompts[s.prompt_id])]
            found.append(_alphas(head, temperature, name, group))
    return found


def _groups(prompt: BenchPrompt) -> list[str]:
    """Return what a prompt is counted under: its data set, its category, and all."""
    return [*filter(None, [prompt.data_set]), prompt.category, ALL]


def _alphas(head: str, temperature: float, name: str, group: Sequence[DraftScore]) -> Alphas:
    """Return the n-alpha of some answers together; None where no answer goes on so far."""
    n_steps = len(group[0].n_right)
    right = [sum(score.n_right[n] for score in group) for n in range(n_steps)]
    of = [sum(score.n_positions[n] for score in group) for n in range(n_steps)]
    values = [r / n if n else None for r, n in zip(right, of, strict=True)]
    return Alphas(head, temperature, name, of[0], values)
