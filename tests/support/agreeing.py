"""Rank 0 as a program with any number of followers, all of which note what their passes give.

`python agreeing.py FOLDER RANKS PARALLEL` writes a target and decodes with it alone and on so many
ranks; it prints what came out as JSON. Every rank writes a digest of the last stream of each pass
to a file of its own, FOLDER/rank.N.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mlx_eagle.cluster import follower
from mlx_eagle.cluster.control import Channel
from mlx_eagle.cluster.forward_end import ForwardEnd

N_TOKENS = 12
HEADS = {"num_attention_heads": 12, "num_key_value_heads": 12}  # for two, three and four ranks


def note_passes(file: Path) -> None:
    """Let every pass of this process write its number and a digest of its stream to a file."""
    plain: Any = ForwardEnd.complete

    def complete(self: ForwardEnd, *args: Any, **kwargs: Any) -> None:
        stream, number = self.last, args[1]
        plain(self, *args, **kwargs)
        digest = hashlib.sha256(np.array(stream).tobytes()).hexdigest()
        with file.open("a") as out:
            out.write(f"{number} {digest}\n")

    ForwardEnd.complete = complete  # type: ignore[method-assign]


def follow(folder: Path) -> None:
    """Be a follower."""

    def make(channel: Channel, rank: int) -> follower.Follower:
        note_passes(folder / f"rank.{rank}")
        return follower.Follower(channel, rank)

    follower.start(make)


def lead_on(folder: Path, n_ranks: int, parallel: str) -> dict[str, Any]:
    """Be rank 0; returns the tokens by way of decoding, alone and together."""
    from mlx_eagle.cluster.hosts import loopback
    from mlx_eagle.cluster.launch import start_cluster
    from mlx_eagle.cluster.watch import Patience
    from mlx_eagle.load_options import PIPELINE
    from pairs_on_hosts import PROMPT, SAMPLING, TREES, Pair

    command = (sys.executable, __file__, "--follow", str(folder))
    patience = Patience(start=300, silence=120, least=300, first=300)
    cluster = start_cluster(loopback(n_ranks), patience, command)
    note_passes(folder / "rank.0")
    kind = {"architecture": "qwen2"} if parallel == PIPELINE else HEADS
    pair = Pair(cluster, folder / "target", parallel=parallel, **kind)
    found: dict[str, Any] = {}
    for sampling, options in SAMPLING.items():
        for tree in ("plain", "tree 8"):
            both = pair.alone, pair.together
            answers = [
                one.generate(PROMPT, max_tokens=N_TOKENS, **options, **TREES[tree]) for one in both
            ]
            found[f"{tree}, {sampling}"] = [answer.tokens for answer in answers]
    cluster.close()
    return found


if __name__ == "__main__":
    if sys.argv[1] == "--follow":
        follow(Path(sys.argv[2]))
    else:
        print(json.dumps(lead_on(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
