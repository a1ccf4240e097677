"""The doctor on multi-token prediction layers: every reading is tried, all starts at once."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mtp_files
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.mtp.extract import LocalCheckpoint, find_layer, write_layer
from mlx_eagle.convert.target_facts import read_target_facts
from mlx_eagle.doctor.alternatives import plausible_values, with_fact
from mlx_eagle.doctor.doctor import repair_head, search_facts
from mlx_eagle.doctor.score import draft_hits, record_evidence
from mlx_eagle.heads.load import assemble, load_head, read_head_config
from mlx_eagle.target.target import Target

PROMPT = [(7 * i + 3) % mtp_files.V for i in range(24)]


def silent(what: str, done: int, total: int) -> None: ...


class Pair:
    """A target, its layer as converted, and a text that the target wrote."""

    def __init__(self, folder: Any, family: str) -> None:
        model, layer = mtp_files.make_foresighted(family)
        source = mtp_files.save_original(folder / "original", family, layer)
        checkpoint = LocalCheckpoint(source, "original")
        write_layer(checkpoint, find_layer(checkpoint), folder / "layer")
        self.folder = folder / "head"
        convert_head(folder / "layer", source, self.folder, bits=None)
        facts = read_target_facts(source)._asdict()
        self.config = read_head_config(self.folder) | {"target": facts}
        self.weights = dict(mx.load(str(self.folder / "model.safetensors")))
        n = mtp_files.N
        self.target = Target(model, taps=(n, n + 1))
        self.evidence = record_evidence(self.target, [PROMPT], 40, silent)


@pytest.mark.parametrize("family", ["qwen3_5", "glm4_moe", "glm4_moe_lite"])
def test_all_starts_at_once_draft_as_each_would_alone(family: str, tmp_path: Any) -> None:
    pair = Pair(tmp_path, family)
    head, text, steps = load_head(pair.folder), pair.evidence[0], 3
    hits = draft_hits(head, pair.target, text, steps)
    embed, unembed = pair.target.embedding, pair.target.unembed
    tokens, taps = mx.array(text.tokens), text.taps[mtp_files.N + 1][None]
    first = text.n_prompt - 2
    for start in (first, first + 20, first + 30):
        cache = head.make_cache()
        out = head(taps[:, : start + 1], embed(tokens[1 : start + 2][None]), cache)
        cache.commit(range(start + 1))
        for step in range(steps):
            drafted = unembed(out.normed[:, -1:]).argmax().item()
            assert hits[step][start - first] == (drafted == text.tokens[start + 2 + step])
            out = head(out.feedback[:, -1:], embed(tokens[start + 2 + step][None, None]), cache)
    assert hits[0].mean() > 0.2 and hits[2].mean() < 1


@pytest.mark.broad
def test_a_layer_that_is_read_wrongly_in_several_ways_is_found_out(tmp_path: Any) -> None:
    pair = Pair(tmp_path, "qwen3_5")
    wrong = {"norms_summed": [], "hidden_first": True}
    config, weights = pair.config, pair.weights
    for fact, value in wrong.items():
        config, weights = with_fact(config, weights, fact, value)
    found = search_facts(pair.target, pair.evidence, config, weights, silent)
    changed = {fact for change in found.changes for fact in change.fact.split(" + ")}
    assert set(wrong) <= changed
    assert found.after.agreement > 0.2 > found.before.agreement
    repair_head(pair.folder, found)  # writes what was measured, beside tensors that were right
    assert read_head_config(pair.folder)["hidden_first"] is False


def test_the_grid_has_sixteen_readings_and_norms_change_by_one(tmp_path: Any) -> None:
    pair = Pair(tmp_path, "qwen3_5")
    grid = plausible_values(pair.config, pair.weights)
    assert len(grid) == 15 and len({str(reading) for reading in grid}) == 15
    _, weights = with_fact(pair.config, pair.weights, "norms_summed", [])
    assert np.allclose(np.array(pair.weights["norm.weight"]) - 1, np.array(weights["norm.weight"]))
    assemble(*with_fact(pair.config, pair.weights, *grid[-1]))
