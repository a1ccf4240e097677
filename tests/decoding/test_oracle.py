"""Acceptance against the original PyTorch implementation, round by round."""

import json
from pathlib import Path
from typing import Any

import pytest

from cases import broad
from mlx_eagle.tree import TreeShape


@pytest.mark.parametrize(
    ("name", "acceptance_length", "n_tokens"),
    [broad("chain4", 2.68, 16), ("tree8", 3.10, 16), broad("tree59", 4.47, 18)],
)
def test_accepted_counts_and_tokens_are_those_of_the_original(
    name: str,
    acceptance_length: float,
    n_tokens: int,
    fixtures: Path,
    engine: Any,
    is_quick: bool,
) -> None:
    """All rounds of the reference, or, by default, those of the first `n_tokens` of one run."""
    oracle = json.loads((fixtures / f"oracle-{name}.json").read_text())
    runs = oracle["runs"][10:11] if is_quick else oracle["runs"]
    assert len(oracle["runs"]) == 20
    counts: list[int] = []
    for run in runs:
        result = engine.generate(
            run["prompt_ids"],
            # The last round of the original may run past its last token.
            max_tokens=n_tokens if is_quick else len(run["tokens"]) + 8,
            ignore_eos=True,
            tree=TreeShape(**oracle["shape"]),
        )
        n = min(len(result.tokens), len(run["tokens"]))
        assert result.tokens[:n] == run["tokens"][:n]
        # The last round may have been cut short.
        found = result.stats.n_accepted_per_round[:-1][: len(run["n_accepted"])]
        assert found == run["n_accepted"][: len(found)]
        counts += found
    assert len(counts) > (n_tokens / 7 * len(runs) if is_quick else 20)
    if not is_quick:
        assert sum(counts) / len(counts) + 1 == pytest.approx(acceptance_length, abs=0.005)
