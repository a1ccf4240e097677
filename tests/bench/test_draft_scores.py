"""n-alpha of answers, against what the loop accepts when it begins at every one of their tokens."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest

from mlx_eagle.bench.asked import Asked
from mlx_eagle.bench.contestants import Contestant, Run
from mlx_eagle.bench.draft_scores import STEPS, DraftScore, alphas_of, score_answers
from mlx_eagle.bench.metrics import Sample
from mlx_eagle.bench.prompts import BenchPrompt, ask
from mlx_eagle.doctor.score import Evidence, draft_hits
from mlx_eagle.hub import packaged
from mlx_eagle.loading import load, load_with_head
from mlx_eagle.tree import TreeShape

QUESTION = "What is the signature of shutil.copyfile?"


def evidence(engine: Any, prompt: list[int], answer: list[int]) -> Evidence:
    """The text, with the taps of one forward over it."""
    import mlx.core as mx

    tokens = [*prompt, *answer]
    taps = engine.target.extend(mx.array(tokens[:-1]), engine.target.make_cache())
    parts = mx.split(taps, len(engine.target.taps), axis=-1)
    return Evidence(tokens, len(prompt), dict(zip(engine.target.taps, parts, strict=True)))


def test_the_hits_are_what_the_loop_accepts_from_every_token_on(turning: Any) -> None:
    """Where a chain is right from its beginning on, the loop accepts exactly that much of it."""
    prompt = turning.tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True
    )
    answer = turning.generate(prompt, max_tokens=18, speculate=False).tokens
    hits = draft_hits(turning.head, turning.target, evidence(turning, prompt, answer), STEPS)
    n = len(answer)
    assert [len(step) for step in hits] == [n - k for k in range(STEPS)]
    found = []
    begins = range(0, n - STEPS - 1, 3)
    for begun in begins:
        stream = turning.stream_generate([*prompt, *answer[:begun]], tree=TreeShape.chain(STEPS))
        with closing(stream):
            tree = next(piece.tree for piece in stream if piece.tree)
        assert tree.tokens[0] == answer[begun], "the loop goes on with the same text"
        found.append(len(tree.path) - 1)
    # Row 0 drafts the answer's first token, which comes with the prompt: the loop begins after it.
    right = np.stack([step[[1 + begun for begun in begins]] for step in hits])
    assert np.cumprod(right, axis=0).sum(axis=0).tolist() == found
    assert 0 < sum(found) < STEPS * len(found), "some are right and others not"


def test_short_answers_have_positions_for_the_first_steps_only(demo: Any) -> None:
    prompt = demo.tokenizer.encode("a b c")
    hits = draft_hits(demo.head, demo.target, evidence(demo, prompt, [5, 6]), 4)
    assert [len(step) for step in hits] == [2, 1, 0, 0]


def test_only_plain_decodings_first_answers_are_scored_once_for_every_head(demo: Any) -> None:
    def run(*_: Any) -> Run:
        raise AssertionError("nothing is generated")

    names = ["plain", "auto", "chain:2"]
    contestants = [Contestant(n, run, True, demo if n != "plain" else None) for n in names]
    asked = Asked.of(demo, [ask("c", QUESTION)])
    answers = [
        Sample(name, t, 0, "c", repeat, [9, 8, 7], 2, 1.0, 1.0, {})
        for repeat in range(2)
        for t in (0.0, 1.0)
        for name in names
    ]
    scores = score_answers(contestants, asked, answers, lambda *_: None)
    assert [(s.head, s.temperature, s.n_positions) for s in scores] == [
        (demo.info.head, t, [3, 2, 1, 0, 0, 0]) for t in (0.0, 1.0)
    ]


@pytest.mark.usefixtures("small_toy_pair")
def test_a_draft_model_is_scored_by_what_it_foresees_of_each_token() -> None:
    """The target itself foresees its own answer; of another text, tokens that it would choose."""
    engine = load(calibrate=False)
    itself = load_with_head(engine, None, f"draft:{packaged.TOY_PAIR.target}", calibrate=False)
    asked = Asked.of(engine, [ask("c", QUESTION)])
    prompt = asked.ids(0.0, 0)
    own = engine.generate(prompt, max_tokens=8, speculate=False, ignore_eos=True).tokens
    contestants = [Contestant("plain", None, True), Contestant("auto", None, True, itself)]
    for answer, right in ((own, [8, 7, 6, 5, 4, 3]), ([*own[:2], 9, 9], [2, 1, 0, 0, 0, 0])):
        sample = Sample("plain", 0.0, 0, "c", 0, answer, 3, 1.0, 1.0, {})
        (score,) = score_answers(contestants, asked, [sample], lambda *_: None)
        assert score.n_positions == [max(len(answer) - n, 0) for n in range(STEPS)]
        assert score.n_right[:3] == right[:3]


def test_n_alpha_counts_positions_by_category_by_set_and_over_all() -> None:
    prompts = [
        BenchPrompt(category, [], data_set=data_set)
        for category, data_set in (("m: a", "m"), ("m: b", "m"), ("g", "g"))
    ]
    scores = [
        DraftScore("h", 0.0, 0, [3, 1], [4, 3]),
        DraftScore("h", 0.0, 1, [1, 0], [4, 0]),
        DraftScore("h", 0.0, 2, [2, 0], [2, 1]),
    ]
    found = {a.category: (a.n_rounds, a.values) for a in alphas_of(scores, prompts)}
    assert list(found) == ["m", "m: a", "m: b", "g", "all"]
    assert found["m"] == (8, [4 / 8, 1 / 3])
    assert found["m: b"] == (4, [1 / 4, None])
    assert found["all"] == (10, [pytest.approx(0.6), 1 / 4])
