"""What tests of kept rows share: prompts, short answers, and the files of an engine."""

import random
from typing import Any

from mlx_eagle.engine import Engine
from mlx_eagle.session.prefix_files import PrefixFiles
from mlx_eagle.tree import TreeShape

N_TOKENS = 6
BLOCK = 16
# Whatever drafting costs on this machine: without drafts there are no rows of the head to be kept.
ANSWER: dict[str, Any] = {"max_tokens": N_TOKENS, "tree": TreeShape.chain(1)}


def draw(seed: int, n: int) -> list[int]:
    """Return a prompt."""
    rng = random.Random(seed)
    return [rng.randrange(500, 4000) for _ in range(n)]


def ask(engine: Engine, ids: list[int], **options: Any) -> Any:
    """Return a short answer."""
    return engine.generate(ids, **ANSWER | options)


def files_of(engine: Engine) -> PrefixFiles:
    """Return the rows on disk of an engine that keeps such."""
    assert engine.prefix_cache is not None
    assert engine.prefix_cache.files is not None
    return engine.prefix_cache.files
