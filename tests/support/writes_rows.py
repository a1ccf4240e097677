"""A program that reads prompts and writes their rows to disk until somebody ends it.

    python writes_rows.py SEED

It says so once it has begun. Files are as small as they can be, so that it writes most of the time.
"""

import random
import sys

from mlx_eagle.engine import Engine
from mlx_eagle.session import prefix_files
from turning_pair import make_turning_engine

BLOCK = 8
LENGTH = 160  # tokens of a prompt


def draw(seed: int) -> list[int]:
    """Return a prompt."""
    rng = random.Random(seed)
    return [rng.randrange(500, 4000) for _ in range(LENGTH)]


def keep_in_small_files(engine: Engine) -> None:
    """Keep rows on disk alone, a few in each file."""
    prefix_files.BLOCK, prefix_files.MOST_BLOCKS = BLOCK, 1
    engine.keep_prefixes(0, 1 << 30)


def main() -> None:
    """Write rows for ever."""
    engine = make_turning_engine()
    keep_in_small_files(engine)
    print("writes", flush=True)
    for seed in range(int(sys.argv[1]), 1 << 30):
        engine.generate(draw(seed), max_tokens=1)


if __name__ == "__main__":
    main()
