"""The largest few of many scores, for drafts that are chosen and drafts that are drawn."""

import mlx.core as mx

CHUNK = 256  # scores of which the largest stands for all
FEW = 4096  # that are sorted as they are


def top_ids(logits: mx.array, k: int) -> mx.array:
    """Return the indices [R, k] of the k largest logits [R, W], the largest first.

    A GPU sorts the whole row to find a few of it, block by block. The k largest are in the k chunks
    with the largest maxima, so only the maxima and those chunks are sorted.
    """
    rows, width = logits.shape
    if k == 1:
        return mx.argmax(logits, axis=-1, keepdims=True)
    if width <= FEW:
        return mx.argsort(-logits, axis=-1)[:, :k]
    padded = mx.pad(logits, [(0, 0), (0, -width % CHUNK)], constant_values=-mx.inf)
    chunks = padded.reshape(rows, -1, CHUNK)
    best_chunks = mx.argsort(-chunks.max(axis=-1), axis=-1)[:, :k]  # [R, k]
    few = mx.take_along_axis(chunks, best_chunks[..., None], axis=1).reshape(rows, -1)
    places = mx.argsort(-few, axis=-1)[:, :k]
    ids = mx.take_along_axis(best_chunks, places // CHUNK, axis=-1) * CHUNK + places % CHUNK
    return mx.minimum(ids, width - 1)  # where a row has fewer than k that are possible at all
