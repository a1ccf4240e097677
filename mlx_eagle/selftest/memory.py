"""Memory over a long answer: what MLX holds, keeps unused, and has held at most."""

from typing import NamedTuple

import mlx.core as mx

from mlx_eagle.engine import Engine

EVERY = 200  # tokens between two looks
SPARE = 64e6  # bytes that MLX may keep unused beside what the caches would explain


class MemoryLook(NamedTuple):
    """Bytes after so many tokens: in use, kept unused by MLX, and the conversation's caches."""

    tokens: int
    active: int
    unused: int
    caches: int


def watch_memory(engine: Engine, prompt: list[int], n_tokens: int) -> list[MemoryLook]:
    """Return what MLX holds while one long answer is made.

    Args:
        engine: that answers.
        prompt: token ids.
        n_tokens: of the answer, if the context has room for them.
    """
    most = engine.limits.max_context
    if most is not None:
        n_tokens = min(n_tokens, most - len(prompt) - 1)
    session, looks = engine.session(), list[MemoryLook]()
    mx.clear_cache()
    stream = session.stream_generate(prompt, max_tokens=n_tokens, ignore_eos=True)
    for response in stream:
        n = response.generation_tokens
        if n % EVERY == 0 or n == n_tokens:
            held = session.prefix.nbytes
            looks.append(MemoryLook(n, mx.get_active_memory(), mx.get_cache_memory(), held))
    return looks


def piles_up(looks: list[MemoryLook]) -> bool:
    """Say whether more is kept unused than the caches explain."""
    return any(look.unused > 2 * look.caches + SPARE for look in looks)
