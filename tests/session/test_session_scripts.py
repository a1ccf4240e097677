"""Whatever happened in a conversation, its next answer is that of a fresh one."""

import json
import random
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.nn as nn
import pytest

from cases import narrowed
from doubles import Letters, make_drafted_engine, make_engine, perturbed
from mlx_eagle.drafters.base import Draws
from mlx_eagle.engine import Engine
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.sampling.options import ACCEPTANCE, MATCH
from mlx_eagle.tree import PLAIN, TreeShape

WORDS = ["why", "say it again", "no.", "a longer question, with commas, and words", "x"]


def settings(
    rng: random.Random, trees: list[Any], rules: Sequence[str] = (MATCH,)
) -> dict[str, Any]:
    """Random options; the seed too may change from turn to turn."""
    chosen: dict[str, Any] = {"max_tokens": rng.randint(1, 9), "seed": rng.randint(0, 5)}
    chosen["tree"] = rng.choice(trees)
    if rng.random() < 0.5:
        chosen["temperature"] = rng.choice([0.6, 1.0, 1.4])
    # By ratio a text depends on the trees, and so on what a planner has learnt.
    if len(rules) > 1 and chosen["tree"] is not None:
        chosen["acceptance"] = rng.choice(rules)
    if rng.random() < 0.3:
        chosen["repetition_penalty"] = 1.5
    if rng.random() < 0.2:
        chosen["speculate"] = False
    if rng.random() < 0.3:
        chosen["prefill_step_size"] = rng.choice([3, 16])
    return chosen


class Script:
    """Random steps in one conversation; every step leaves `session` to go on with."""

    def __init__(self, engine: Engine, seed: int, folder: Path, trees: list[Any]) -> None:
        self.engine, self.folder, self.trees = engine, folder, trees
        self.rng = random.Random(seed)
        self.rules = ACCEPTANCE if isinstance(engine.make_drafter(), Draws) else (MATCH,)
        self.session = engine.session(self.rng.choice([None, "be brief"]))
        list(self.session.ask("hello", **self.options()))

    def run(self, n_steps: int) -> None:
        steps: list[Callable[[], None]] = [
            *(self.append, self.regenerate, self.edit, self.undo, self.fork, self.save_and_load),
            *(self.cancel, self.close, self.cancel_prefill, self.other_system, self.clear),
        ]
        for _ in range(n_steps):
            self.rng.choice(steps)()

    def options(self) -> dict[str, Any]:
        return settings(self.rng, self.trees, self.rules)

    def append(self) -> None:
        list(self.session.ask(self.rng.choice(WORDS), **self.options()))

    def regenerate(self) -> None:
        if self.session.messages:
            list(self.session.regenerate(**self.options()))

    def edit(self) -> None:
        if self.session.messages:
            list(self.session.edit(self.rng.choice(WORDS), **self.options()))

    def undo(self) -> None:
        self.session.undo()

    def fork(self) -> None:
        """Go on with either branch, after the other has said something."""
        branches = [self.session, self.session.fork()]
        self.rng.shuffle(branches)
        list(branches[0].ask(self.rng.choice(WORDS), **self.options()))
        self.session = branches[1] if self.rng.random() < 0.7 else branches[0]

    def save_and_load(self) -> None:
        path = self.folder / "saved"
        self.session.save(path)
        self.session = self.engine.load_session(path)

    def cancel(self) -> None:
        """Somebody has had enough, somewhere in the answer."""
        n = self.rng.randint(1, 6)
        for index, _ in enumerate(self.session.ask(self.rng.choice(WORDS), **self.options()), 1):
            if index == n:
                self.session.cancel()

    def close(self) -> None:
        stream = self.session.ask(self.rng.choice(WORDS), **self.options())
        list(islice(stream, self.rng.randint(0, 5)))
        if self.rng.random() < 0.5:
            stream.close()

    def cancel_prefill(self) -> None:
        options = self.options() | {"prefill_step_size": 4}
        stream = self.session.ask("w" * 30, progress=lambda *_: self.session.cancel(), **options)
        assert list(stream) == []

    def other_system(self) -> None:
        self.session.system = self.rng.choice([None, "be brief", "be long."])

    def clear(self) -> None:
        if self.rng.random() < 0.3:
            self.session.clear()


CHAINS = [PLAIN, TreeShape.chain(1), TreeShape.chain(4), None]
FAMILIES = json.loads((Path(__file__).parents[1] / "data" / "families.json").read_text())[
    "recurrent"
]
# How many scripts there are of each by default, and where more is asked for.
N_SCRIPTS = {
    ("llama", "head"): (1, 200),
    ("gemma3_text", "head"): (1, 150),
    ("qwen3_moe", "head"): (1, 50),
    ("lfm2", "head"): (1, 60),
    ("qwen3_next", "head"): (1, 40),
    ("llama", "ngram"): (1, 100),
    ("llama", "head+ngram"): (1, 100),
    ("lfm2", "head+ngram"): (1, 60),
}
# A target and what drafts for it: itself changed a little, a window of 8, a recurrent model; and
# whether tokens are looked up beside it.
DRAFTED = {
    ("qwen3", "qwen3", "alone"): (1, 100),
    ("qwen3", "qwen3", "+ngram"): (1, 100),
    ("llama", "gemma3_text", "alone"): (1, 60),
    ("llama", "lfm2", "alone"): (1, 60),
    ("llama", "lfm2", "+ngram"): (1, 60),
    ("lfm2", "llama", "alone"): (1, 60),
}


@pytest.mark.parametrize(("architecture", "kind"), N_SCRIPTS)
def test_after_any_script_the_next_answer_is_that_of_a_fresh_conversation(
    architecture: str,
    kind: str,
    is_quick: bool,
    tiny_target: Callable[..., nn.Module],
    head_config: HeadConfig,
    tmp_path: Path,
) -> None:
    model = tiny_target(architecture, **FAMILIES.get(architecture, {}))
    engine = make_engine(model, head_config, Letters(), kind)
    check_scripts(engine, N_SCRIPTS[architecture, kind][0 if is_quick else 1], is_quick, tmp_path)


@pytest.mark.parametrize(
    "names", narrowed(DRAFTED, [*DRAFTED][1::2]), ids=lambda names: "-".join(names)
)
def test_so_it_is_where_a_model_drafts(
    names: tuple[str, str, str],
    is_quick: bool,
    tiny_target: Callable[..., nn.Module],
    tmp_path: Path,
) -> None:
    model, draft = (tiny_target(name, **FAMILIES.get(name, {})) for name in names[:2])
    draft = perturbed(draft, 0.2) if names[0] == names[1] else draft
    engine = make_drafted_engine(model, draft, Letters(), has_lookup=names[2] == "+ngram")
    check_scripts(engine, DRAFTED[names][0 if is_quick else 1], is_quick, tmp_path)


def check_scripts(engine: Engine, n_scripts: int, is_quick: bool, folder: Path) -> None:
    """Compare the next answer after each of so many scripts with that of a fresh conversation."""
    drafter = engine.make_drafter()
    branches = drafter is not None and drafter.max_width > 1 and not engine.target.chains_only
    trees = [*CHAINS, TreeShape(3, 3, 7)] if branches else CHAINS
    reused = 0
    for seed in range(n_scripts):
        script = Script(engine, seed, folder, trees)
        script.run(script.rng.randint(2, 7))
        session, question, options = script.session, script.rng.choice(WORDS), script.options()
        session.undo() if script.rng.random() < 0.1 else None
        system = [{"role": "system", "content": session.system}] if session.system else []
        # A stream that is still open ends with the question, and joins the conversation.
        answer = session.ask(question, **options)
        before = [*system, *session.messages, {"role": "user", "content": question}]
        got = list(answer)
        want = engine.generate(before, **options)
        assert [r.token for r in got] == want.tokens, seed
        assert "".join(r.text for r in got) == want.text
        assert got[-1].stats is not None
        reused += got[-1].stats.cached_tokens > 0
    # Of a few scripts chance may leave fewer than half that were kept.
    least = n_scripts // 3 if is_quick else n_scripts // 2
    assert reused >= least, "most conversations started over; nothing was kept"
