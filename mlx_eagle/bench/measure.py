"""Runs every contestant on every prompt, in alternating order, in one process.

What the times mean is in `metrics.py`. Nothing is printed here.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

from mlx_eagle.bench.asked import Asked
from mlx_eagle.bench.contestants import Contestant, Setting
from mlx_eagle.bench.kept import Kept
from mlx_eagle.bench.metrics import Probe, Sample
from mlx_eagle.engine import Engine
from mlx_eagle.tree import TreeShape

PROBE_DEPTH = 5  # tokens of the chain by which n-alpha is measured

Report = Callable[[int, int], None]


class Trial(NamedTuple):
    """How a run is done.

    Attributes:
        max_tokens: to generate per prompt.
        ignore_eos: go on to `max_tokens` whatever the model says.
        temperatures: every contestant runs at each of them.
        seed: prompt i is sampled with seed + i, by every contestant and in every repeat.
        repeats: how often everything is timed.
        warmup: untimed tokens of every contestant at every temperature, at the start.
        cooldown: seconds of rest before every timed generation.
    """

    max_tokens: int = 128
    ignore_eos: bool = True
    temperatures: tuple[float, ...] = (0.0,)
    seed: int = 0
    repeats: int = 1
    warmup: int = 32
    cooldown: float = 0.0

    def setting(self, temperature: float, prompt_id: int) -> Setting:
        """Return how one prompt is generated."""
        seed = seed_of(self.seed, prompt_id)
        return Setting(self.max_tokens, self.ignore_eos, temperature, seed)


def seed_of(seed: int, prompt_id: int) -> int:
    """Return the seed of a prompt; after the largest one comes 0."""
    return (seed + prompt_id) % 2**32


class Turn(NamedTuple):
    """Whose turn it is, and with what: indices of contestant and prompt."""

    repeat: int
    temperature: float
    prompt_id: int
    contestant_id: int


def schedule(n_contestants: int, n_prompts: int, trial: Trial) -> Iterator[Turn]:
    """Yield all turns; contestants alternate prompt by prompt.

    Every other prompt they run in reverse, and in the next repeat the other way round, so that
    none always follows the same neighbour: a wide pass heats the machine for whoever comes next.
    """
    for repeat in range(trial.repeats):
        generations = product(trial.temperatures, range(n_prompts))
        # A prompt begins the next repeat with the other end.
        for at, (temperature, prompt_id) in enumerate(generations, start=repeat):
            order = range(n_contestants)
            for contestant_id in reversed(order) if at % 2 else order:
                yield Turn(repeat, temperature, prompt_id, contestant_id)


def warm_up(contestants: Sequence[Contestant], prompt: list[int], trial: Trial) -> None:
    """Let every contestant generate a little, so that nothing is compiled while it is timed."""
    for temperature in trial.temperatures if trial.warmup else ():
        for contestant in contestants:
            setting = trial.setting(temperature, 0)._replace(max_tokens=trial.warmup)
            contestant.run(prompt, setting)


def measure(
    contestants: Sequence[Contestant],
    asked: Asked,
    trial: Trial,
    report: Report,
    *,
    kept: Kept | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Sample]:
    """Return all timed generations, in the order in which they ran.

    Args:
        contestants: who takes part; the first one's answers are what later turns go on after.
        asked: the prompts.
        trial: how.
        report: called with (generations done, generations in all).
        kept: generations of this run that were done before, and where new ones are kept.
        sleep: rests for so many seconds.
    """
    turns = list(schedule(len(contestants), len(asked.prompts), trial))
    samples: list[Sample] = []
    for start in range(0, len(turns), len(contestants)):
        report(start, len(turns))
        group = turns[start : start + len(contestants)]  # everybody on one prompt
        found = kept.find(*group[0][:3]) if kept else None
        if found is None:
            found = [_generate(contestants, asked, turn, trial, sleep) for turn in group]
            if kept:
                kept.add(found)
        plain = next(s for s in found if s.contestant == contestants[0].name)
        asked.note(plain.temperature, plain.prompt_id, plain.tokens)
        samples += found
    report(len(turns), len(turns))
    return samples


def _generate(
    contestants: Sequence[Contestant],
    asked: Asked,
    turn: Turn,
    trial: Trial,
    sleep: Callable[[float], None],
) -> Sample:
    """Let one contestant answer one prompt."""
    if trial.cooldown:
        sleep(trial.cooldown)
    repeat, temperature, prompt_id, contestant_id = turn
    contestant, prompt = contestants[contestant_id], asked.prompts[prompt_id]
    ids = asked.ids(temperature, prompt_id)
    run = contestant.run(ids, trial.setting(temperature, prompt_id))
    where = (contestant.name, temperature, prompt_id, prompt.category, repeat)
    return Sample(*where, *run)


def probe(
    contestants: Sequence[Contestant], asked: Asked, trial: Trial, report: Report
) -> list[Probe]:
    """Run every head once more on every prompt with a fixed chain, untimed, for n-alpha.

    Args:
        contestants: those that share a head are one.
        asked: the prompts, with the answers that later turns go on after.
        trial: how.
        report: called with (generations done, generations in all).
    """
    engines, n_prompts = engines_of(contestants), len(asked.prompts)
    turns = [(e, t, i) for e in engines for t in trial.temperatures for i in range(n_prompts)]
    probes = []
    for done, (engine, temperature, i) in enumerate(turns):
        report(done, len(turns))
        depth = _probe_depth(engine)
        setting = trial.setting(temperature, i)._asdict()
        ids = asked.ids(temperature, i)
        stats = engine.generate(ids, tree=TreeShape.chain(depth), **setting).stats
        name, category = engine.info.head, asked.prompts[i].category
        probes.append(Probe(name, temperature, category, depth, stats.n_accepted_per_round))
    report(len(turns), len(turns))
    return probes


def engines_of(contestants: Sequence[Contestant]) -> list[Engine]:
    """Return the engines that draft with a head, each once."""
    return list({id(c.engine): c.engine for c in contestants if c.engine is not None}.values())


def _probe_depth(engine: Engine) -> int:
    """Return the length of the chain, which some heads cannot make as long."""
    assert engine.head is not None, "a contestant that drafts has a head"
    return min(PROBE_DEPTH, engine.head.max_depth)
