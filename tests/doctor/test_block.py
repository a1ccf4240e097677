"""The doctor on heads that draft blocks: what it scores, and what it tries."""

from dataclasses import asdict
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from block_pairs import PROMPT, turning_dspark
from mlx_eagle.doctor.alternatives import plausible_values
from mlx_eagle.doctor.doctor import search_facts
from mlx_eagle.doctor.score import draft_hits, record_evidence
from mlx_eagle.drafters.make import make_drafter
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape


def silent(what: str, done: int, total: int) -> None: ...


@pytest.fixture(scope="module")
def pair() -> Any:
    """A target, its head, and a text that the target wrote."""
    model, head = turning_dspark()
    target = Target(model, taps=tuple(range(1, 5)))
    return target, head, record_evidence(target, [PROMPT], 40, silent)


def test_every_start_drafts_as_a_drafter_does_there(pair: Any) -> None:
    target, head, (text,) = pair
    hits = draft_hits(head, target, text, 3)
    taps = mx.concatenate([text.taps[b] for b in head.config.taps], axis=-1)
    tokens, first = mx.array(text.tokens, dtype=mx.int32), text.n_prompt - 2
    for start in (first, first + 20):
        drafter = make_drafter(head, target)
        drafter.observe(taps[: start + 1], tokens[1 : start + 2])
        chain = drafter.draft(tokens[start + 1 : start + 2], TreeShape.chain(3))
        drafted, written = chain.tokens.tolist()[1:], text.tokens[start + 2 : start + 5]
        n_right = next((i for i in range(3) if drafted[i] != written[i]), 3)
        found = [bool(level[start - first]) for level in hits]
        assert found[:n_right] == [True] * n_right
        assert n_right == 3 or not found[n_right]
    assert 0.2 < np.mean(hits[0]) < 1


def test_every_reading_of_a_block_is_tried(pair: Any) -> None:
    target, head, evidence = pair
    weights = dict(tree_flatten(head.parameters()))
    config = asdict(head.config) | {"target": {"num_hidden_layers": 4}, "doubts": {}}
    config = config | {name: list(config[name]) for name in ("taps", "causal_layers")}
    tried = dict.fromkeys(fact for fact, _ in plausible_values(config, weights))
    assert {"taps", "rope_interleaved", "root_predicts", "causal_layers"} <= set(tried)
    found = search_facts(target, evidence, config, weights, silent)
    assert found.before.agreement > 0.2
    tapped = [o for o in plausible_values(config, weights) if o[0] != "taps" or min(o[1]) > 0]
    readings = [o for o in tapped if o[0] != "taps" or max(o[1]) < 5]
    assert len(found.trials) == 1 + len(readings)
