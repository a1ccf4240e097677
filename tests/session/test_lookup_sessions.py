"""Conversations with n-gram lookup, alone and beside a head: texts, files, memory, statistics."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from cases import broad
from doubles import HEADS
from mlx_eagle.calibration.head_health import HeadWatch
from mlx_eagle.calibration.planners import Calibration, Planners
from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.ngram import NgramHead, sources_of
from mlx_eagle.planner.cost_model import Costs
from mlx_eagle.tree import TreeShape

KINDS = ("ngram", "head+ngram")
FREE = Costs((0,), dict.fromkeys(range(1, 17), (1e-4,)), (1e-4,), (1e-6, 2e-6), 0.0)
DEAR_WAITS = Costs((0,), FREE.verify, (1e-4,), (2e-5, 4e-5), 1.9e-5, 5e-5)
TREES = (TreeShape.chain(3), TreeShape(4, 2, 6), None)


def engine_of(turning: Engine, kind: str, costs: Costs = FREE) -> Engine:
    """An engine of the same pair that drafts with one of `HEADS`, on a machine of these costs."""
    assert turning.head is not None
    head = HEADS[kind](turning.head)  # type: ignore[arg-type]
    measured = Calibration(costs, "made up", is_measured=True)
    planners = Planners(measured, 255, sources=sources_of(head))
    info = turning.info._replace(head=kind)
    return Engine(turning.target, turning.tokenizer, head, info, planners, turning.limits)


@pytest.fixture(scope="module")
def asked(turning: Engine, prompts: list[str]) -> dict[str, Any]:
    """A prompt, and a bias that leaves four words to answer with: what was said comes again."""
    ids: list[int] = turning.tokenizer.encode(prompts[1])
    words = turning.generate(ids, max_tokens=4, ignore_eos=True, speculate=False).tokens
    bias = dict.fromkeys(words, 100.0)
    return {"prompt": ids, "max_tokens": 32, "ignore_eos": True, "logit_bias": bias}


def test_an_index_that_grows_does_not_cost_the_buffers_of_every_round(
    turning: Engine, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    monkeypatch.setattr("mlx_eagle.decoding.loop.mx.clear_cache", lambda: given_back.append(1))
    found = engine_of(turning, "ngram").generate(**asked, tree=TREES[0])
    assert found.stats.rounds > 6 and len(given_back) <= 2


@pytest.mark.parametrize(
    ("kind", "temperature"),
    [("ngram", 0.7), ("head+ngram", 0.0), broad("ngram", 0.0), broad("head+ngram", 0.7)],
)
def test_the_text_is_that_of_plain_decoding_and_what_repeats_is_accepted(
    kind: str, temperature: float, turning: Engine, asked: dict[str, Any]
) -> None:
    options = asked | {"temperature": temperature, "seed": 3}
    want = turning.generate(**options, speculate=False).tokens
    engine = engine_of(turning, kind)
    for tree in TREES[2 if temperature else 0 :]:
        found = engine.generate(**options, tree=tree)
        assert found.tokens == want, tree
        assert found.stats.accepted > 6, tree
        by_source = found.stats.by_source
        assert set(by_source) <= {"n-gram", *kind.split("+")} - {"ngram"}
        assert sum(n for n, _ in by_source.values()) == found.stats.drafted
        assert sum(n for _, n in by_source.values()) == found.stats.accepted
        assert by_source["n-gram"][1] > 0, tree
    waits = engine_of(turning, kind, DEAR_WAITS).generate(**options)
    assert waits.tokens == want


@pytest.mark.parametrize("tree", [TREES[1], None])
def test_what_is_looked_up_says_nothing_of_the_head_beside_it(
    tree: Any, turning: Engine, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HeadWatch, "PATIENCE", 4)
    # The head proposes one token, which is never written.
    never = next(token for token in range(99) if token not in asked["logit_bias"])
    ids = mx.full(turning.head.draft_to_target.shape, never, dtype=mx.int32)
    monkeypatch.setitem(turning.head, "draft_to_target", ids)
    engine = engine_of(turning, "head+ngram")
    engine.planners.watch = HeadWatch("call the doctor")
    stats = engine.generate(**asked | {"max_tokens": 40}, tree=tree).stats
    rounds, right = stats.first_by_source["head"]
    assert 4 <= rounds <= stats.rounds and right == 0
    assert stats.accepted > 8, "copies are right all the same"
    assert "was right in only 0%" in stats.advice


def test_a_planner_finds_more_beside_a_head_than_either_alone(
    turning: Engine, asked: dict[str, Any]
) -> None:
    def rounds(kind: str) -> int:
        return engine_of(turning, kind).generate(**asked).stats.rounds

    assert rounds("head+ngram") <= min(rounds("head"), rounds("ngram"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_conversation_comes_back_from_its_file_and_goes_on(
    kind: str, turning: Engine, prompts: list[str], tmp_path: Path
) -> None:
    engine, tree = engine_of(turning, kind), TreeShape(3, 2, 4)
    session = engine.session()
    list(session.ask(prompts[1], max_tokens=12, tree=tree))
    session.save(tmp_path / "talk")
    loaded = engine.load_session(tmp_path / "talk")
    assert loaded.usage()[:2] == session.usage()[:2]
    got = [list(each.ask(prompts[2], max_tokens=12, tree=tree)) for each in (loaded, session)]
    assert [r.token for r in got[0]] == [r.token for r in got[1]]
    stats = [answer[-1].stats for answer in got]
    assert stats[0].n_accepted_per_round == stats[1].n_accepted_per_round
    assert stats[0].cached_tokens == stats[1].cached_tokens > 20


def test_a_file_that_was_made_with_another_drafter_is_refused_by_name(
    turning: Engine, prompts: list[str], tmp_path: Path
) -> None:
    names = {"head": r"\w{12}", "ngram": "ngram", "head+ngram": r"ngram\+\w{6}"}
    engines = {kind: engine_of(turning, kind) for kind in names}
    for kind, engine in engines.items():
        session = engine.session()
        list(session.ask(prompts[1], max_tokens=2, tree=TreeShape.chain(1)))
        session.save(tmp_path / kind)
        for other in names.keys() - {kind}:
            said = rf"saved with another head \({names[kind]}, this one is {names[other]}\)"
            with pytest.raises(EagleError, match=said):
                engines[other].load_session(tmp_path / kind)


def test_the_memory_of_a_conversation_includes_the_text_that_is_looked_up_in(
    turning: Engine, prompts: list[str]
) -> None:
    engine = engine_of(turning, "ngram")
    session = engine.session()
    list(session.ask(prompts[1], max_tokens=4))
    prefix = session.prefix
    assert prefix.drafter is not None and prefix.drafter.rows == prefix.cache.rows
    assert session.usage().cache_bytes == prefix.cache.nbytes + prefix.drafter.nbytes
    assert prefix.drafter.nbytes > 4096


def test_lookup_is_there_although_it_has_no_weights() -> None:
    assert NgramHead()
