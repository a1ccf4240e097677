"""Accuracies by rank, against counting them one position at a time; then trees built from them."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from doubles import NoText
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.calibration.planners import Planners
from mlx_eagle.calibration.store import Identity, Records
from mlx_eagle.cli.calibrate import ranks as report
from mlx_eagle.doctor import doctor
from mlx_eagle.doctor.rank_accuracy import rank_accuracies
from mlx_eagle.doctor.score import record_evidence
from mlx_eagle.drafters.medusa import MedusaDrafter
from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import MedusaConfig
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.speculation import ON
from mlx_eagle.static_tree import MeasuredTree, StaticTree
from mlx_eagle.target.target import Target
from tiny_models import build_target

PROMPT = [5, 9, 17]


class Encoding(NoText):
    """A tokenizer that reads every text alike."""

    has_chat_template = False

    def encode(self, text: str, **_: Any) -> list[int]:
        return PROMPT


@pytest.fixture(scope="module")
def medusa() -> Engine:
    """Random Medusa heads that use the output layer of a tiny target."""
    sizes = dict.fromkeys(("hidden_size", "target_hidden_size"), 64)
    words = dict.fromkeys(("target_vocab_size", "draft_vocab_size"), 128)
    config = MedusaConfig(
        "medusa", **sizes, **words, num_heads=3, num_layers=1, block_bias=True, own_lm_heads=False,
        taps=(5,),
    )  # fmt: skip
    mx.random.seed(1)
    target = Target(build_target("llama"), (5,))
    info = EngineInfo("tiny", "", "medusa", "", ON, "", False)
    return Engine(target, Encoding(), MedusaHead(config), info)


def test_shares_are_those_of_drafting_at_every_position(medusa: Engine) -> None:
    head, target = medusa.head, medusa.target
    assert isinstance(head, MedusaHead)
    (text,) = record_evidence(target, [PROMPT], 20, lambda *_: None)
    found = rank_accuracies(head, target, [text])
    taps = text.taps[5]
    for depth in range(3):
        hits, n = np.zeros(10), 0
        for at in range(text.n_prompt - 1, len(text.tokens) - 2 - depth):
            drafter = MedusaDrafter(head, target)
            drafter.observe(taps[at : at + 1], mx.array(text.tokens[at + 1 : at + 2]))
            levels = list(drafter.greedy_path(10, 3))
            hits += np.array(levels[depth][1]) == text.tokens[at + 2 + depth]
            n += 1
        assert found[depth] == pytest.approx(np.minimum.accumulate(hits / n).tolist())
    assert report(found).count("\n") == 3


@pytest.mark.parametrize("name", ["mc_sim_7b_63", "static"])
def test_a_static_tree_has_the_ranked_tokens_of_each_depth(name: str, medusa: Engine) -> None:
    head, target = medusa.head, medusa.target
    tree = StaticTree.of([(0, 1, 0), (2,), (1, 0)])
    if name != "static":
        tree = StaticTree.published(name)
        assert (len(tree.paths), tree.depth, tree.width) == (63, 4, 10)
        tree = StaticTree.of([path for path in tree.paths if len(path) <= 3])
    drafter = MedusaDrafter(head, target)
    taps = target.extend(mx.array(PROMPT, dtype=mx.int32), target.make_cache())
    drafter.observe(taps, mx.array([1, 2, 3], dtype=mx.int32))
    levels = [(np.array(p), np.array(t)) for p, t in drafter.greedy_path(tree.width, 3)]
    found = drafter.draft_static(mx.array([3], dtype=mx.int32), tree)
    assert found.structure() == tree.parents
    for path, token, score in zip(
        tree.paths, found.tokens.tolist()[1:], found.log_probs.tolist()[1:], strict=True
    ):
        assert token == levels[len(path) - 1][1][path[-1]]
        assert score == pytest.approx(sum(levels[d][0][r] for d, r in enumerate(path)), abs=1e-4)


def test_the_text_is_that_of_plain_decoding_with_any_static_tree(medusa: Engine) -> None:
    tree = StaticTree.of([(r, s, 0) for r in range(4) for s in range(3)])
    for options in ({}, {"temperature": 1.0, "seed": 2}):
        common = {"max_tokens": 12, "ignore_eos": True, **options}
        want = medusa.generate(PROMPT, speculate=False, **common)
        assert medusa.generate(PROMPT, tree=tree, **common).tokens == want.tokens


def test_a_measured_tree_needs_a_measurement_and_is_kept(
    medusa: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "N_TOKENS", 12)
    monkeypatch.setattr("mlx_eagle.engine.measure_costs", lambda *_: medusa.planners.calibration)
    common = {"max_tokens": 4, "ignore_eos": True}
    with pytest.raises(EagleError, match="tree static:6 .* run mlx-eagle calibrate"):
        medusa.generate(PROMPT, tree=MeasuredTree(6), **common)
    records = Records(tmp_path, Identity({"chip": "x"}, {"head": "y"}))
    medusa.planners = Planners(records=records)
    medusa.calibrate()
    assert medusa.planners.ranks == records.ranks() == Planners(records=records).ranks
    result = medusa.generate(PROMPT, tree=MeasuredTree(6), **common)
    assert result.stats.drafted % 6 == 0 < result.stats.drafted
    other_cache = medusa.with_kv(KVOptions(max_size=64))
    assert other_cache.planners.ranks == medusa.planners.ranks
    records.save_acceptance({})
    assert records.ranks() is not None
    records.acceptance_file.write_text('{"version": 1, "ranks": [[2]]}')
    assert records.ranks() is None


def test_only_medusa_heads_have_a_measured_tree(turning: Any) -> None:
    with pytest.raises(EagleError, match=r"tree static:6 .* of Medusa heads .* \(eagle1\)"):
        turning.generate("def", tree=MeasuredTree(6))
    fixed = turning.generate("def", tree=StaticTree.published("eagle1"), max_tokens=4)
    assert fixed.tokens == turning.generate("def", speculate=False, max_tokens=4).tokens
