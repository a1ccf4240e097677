"""A pair whose drafts are often accepted, in this process and with its target on several ranks."""

from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.calibration.planners import Calibration, Planners
from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.engine import Engine
from mlx_eagle.load_options import TENSOR
from mlx_eagle.planner.cost_model import Costs, LiveCosts
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape
from shards import lead, write_model
from tiny_models import ARCHITECTURES, SMALL
from turning_pair import GROUP_SIZE, make_turning_engine

FREE_ROWS = Costs((0,), dict.fromkeys(range(1, 17), (1.0,)), (1.0,), (0.01,) * 8, 0.0)
TREES: dict[str, dict[str, Any]] = {
    "plain": {"speculate": False},
    "chain 4": {"tree": TreeShape.chain(4)},
    "tree 8": {"tree": TreeShape(4, 4, 8)},
    "tree 60": {"tree": TreeShape(6, 10, 60)},
    "planner": {},
}
SAMPLING: dict[str, dict[str, Any]] = {
    "greedy": {},
    "drawn": {"temperature": 0.8, "top_p": 0.95, "seed": 7},
}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"enum": ["one", "two"]}},
    "required": ["n"],
    "additionalProperties": False,
}
PROMPT = list(range(300, 330))


class Pair:
    """The same pair twice; head and tokenizer are shared."""

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        architecture: str = "llama",
        parallel: str = TENSOR,
        bits: int | None = None,
        **changes: Any,
    ) -> None:
        self.alone = make_turning_engine(architecture, bits, **changes)
        network = self.alone.target.model
        head_dim = SMALL["head_dim"] if architecture == "qwen2" else 32  # qwen2 has no choice
        sizes = {"vocab_size": 4096, "max_position_embeddings": 2048, "head_dim": head_dim}
        config = SMALL | ARCHITECTURES[architecture] | sizes | changes
        if bits is not None:
            config["quantization"] = {"group_size": GROUP_SIZE, "bits": bits}
        write_model(folder, network, {"model_type": architecture} | config)
        self.target = lead(cluster, folder, self.alone.target.taps, parallel)
        self.together = self.engine(self.target)
        self.alone = self.engine(self.alone.target)

    def agree(self, tree: str, sampling: str, n_tokens: int) -> None:
        """Compare what both decode with a tree of TREES, and what one process decodes plainly."""
        options = {"max_tokens": n_tokens, **SAMPLING[sampling]}
        plain = self.alone.generate(PROMPT, **options, speculate=False)
        with pytest.MonkeyPatch.context() as patch:
            # Times differ from run to run, and by them a planner would choose other trees.
            patch.setattr(LiveCosts, "observe", lambda *_: None)
            got = self.together.generate(PROMPT, **options, **TREES[tree])
            drafted = self.alone.generate(PROMPT, **options, **TREES[tree])
        assert got.tokens == plain.tokens
        if tree != "plain":
            assert got.stats.accepted > 0, "nothing was accepted; the test shows little"
            assert got.stats.n_accepted_per_round == drafted.stats.n_accepted_per_round

    def agree_on_pieces(self) -> None:
        """Compare what both say to a prompt that is read in pieces."""
        options = {"max_tokens": 4, "prefill_step_size": 10}
        want = self.alone.generate(PROMPT, **options)
        assert self.together.generate(PROMPT, **options).tokens == want.tokens

    def engine(self, target: Target) -> Engine:
        """Return an engine of the pair with this target, whose planner takes rows for free."""
        one, head = self.alone, self.alone.head
        planners = Planners(Calibration(FREE_ROWS, "a test", is_measured=True), head.max_depth)
        return Engine(target, one.tokenizer, head, one.info, planners, one.limits)
