"""Prefill: a prompt is run through target and head, a chunk at a time.

Each chunk is evaluated before the next one, so that memory holds one chunk and not the prompt.
"""

from collections.abc import Generator, Sequence

import mlx.core as mx

from mlx_eagle.decoding.rounds import Decoder
from mlx_eagle.drafters.base import ReadsText

PREFILL_STEP = 2048  # tokens per prefill chunk, as in mlx-lm


def prefill(decoder: Decoder, prompt: Sequence[int]) -> None:
    """Run all tokens of `prompt` but the last through target and head; see `prefill_steps`."""
    for _ in prefill_steps(decoder, prompt):
        pass


def prefill_steps(
    decoder: Decoder, prompt: Sequence[int], step: int = PREFILL_STEP
) -> Generator[int]:
    """Run all tokens of `prompt` but the last through target and head; the last is the first root.

    Yields how many tokens are done, before the first forward and after every one. What is done
    stays if the caller stops there.

    Args:
        decoder: its cache and drafter may already hold the first rows of the prompt.
        prompt: token ids.
        step: most tokens per forward.
    """
    target, cache, drafter = decoder.target, decoder.cache, decoder.drafter
    ids = mx.array(list(prompt), dtype=mx.int32)
    last = len(prompt) - 1
    if isinstance(drafter, ReadsText) and cache.rows == 0:
        drafter.begin(ids[:1])
    yield cache.rows
    while cache.rows < last:
        # Cut at multiples, or a prompt of which a part is held would be read in other pieces.
        start, end = cache.rows, min((cache.rows // step + 1) * step, last)
        taps = target.extend(ids[start:end], cache)
        if drafter is not None:
            drafter.observe(taps, ids[start + 1 : end + 1])
        # A chunk at a time, or the graph of the whole prompt would be held in memory.
        mx.eval(cache.buffers, drafter.buffers if drafter is not None else [])
        mx.clear_cache()
        yield end
