"""256 tokens of every kind of drafts, on targets of several families: those of one process."""

import json
from typing import Any

import pytest

from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.load_options import PIPELINE
from pairs_on_hosts import PROMPT, SAMPLING, SCHEMA, TREES, Pair

pytestmark = [pytest.mark.broad, pytest.mark.bitwise]
INNER = {"intermediate_size": 128, "moe_intermediate_size": 128}  # halves are whole groups
KINDS: dict[str, dict[str, Any]] = {
    "qwen3": {"architecture": "qwen3"},
    "quantized mixture": {"architecture": "qwen3_moe", "bits": 8, **INNER},
    "quantized mixture, pipeline": {
        **{"architecture": "qwen3_moe", "bits": 8, "parallel": PIPELINE},
        **INNER,
    },
    "qwen2, pipeline": {"architecture": "qwen2", "parallel": PIPELINE},
}
GRAMMARS: dict[str, dict[str, Any]] = {
    "schema": {"json_schema": SCHEMA},
    "regex": {"regex": "(one|two|three) [a-z]{3,9}"},
}


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Pair:
    return Pair(cluster, tmp_path_factory.mktemp("turning") / "target", **KINDS[request.param])


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("tree", ["chain 4", "tree 8", "planner"])
def test_tokens_are_those_of_one_process_and_of_plain_decoding(
    tree: str, sampling: str, pair: Pair
) -> None:
    options = {"max_tokens": 256, "ignore_eos": True, **SAMPLING[sampling]}
    want = pair.alone.generate(PROMPT, **options, speculate=False)
    got = pair.together.generate(PROMPT, **options, **TREES[tree])
    assert got.tokens == want.tokens
    assert len(got.tokens) == 256
    assert got.stats.accepted > 0, "nothing was accepted; the test shows little"
    plain = pair.together.generate(PROMPT, **options | {"max_tokens": 32}, speculate=False)
    assert plain.tokens == want.tokens[:32]


@pytest.mark.parametrize("sampling", SAMPLING)
@pytest.mark.parametrize("grammar", GRAMMARS)
def test_answers_that_keep_to_a_grammar_are_those_of_one_process(
    grammar: str, sampling: str, pair: Pair
) -> None:
    options = {"max_tokens": 40, **GRAMMARS[grammar], **SAMPLING[sampling]}
    want = pair.alone.generate(PROMPT, **options, speculate=False)
    for tree in ("chain 4", "tree 8"):
        assert pair.together.generate(PROMPT, **options, **TREES[tree]).tokens == want.tokens
    if grammar == "schema":
        assert json.loads(want.text)["n"] in ("one", "two")
