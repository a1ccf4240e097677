"""A head that drafts at every token of a text at once: the forward pass of training-time test.

Start t of a text is a draft of its own: its first step reads the target's features at token t, its
later ones what the head gave before (EAGLE-3, arXiv 2503.01840, section 3.2). All starts run side
by side, one step after the other. What start t sees in step i are the first step's keys up to t,
which are computed from true features, and then its own keys of the steps since, one each: the
diagonal. So scores of later steps are dot products of rows, and no mask of K * L columns is made.
Training and the doctor's teacher-forced score both run this.

Worked example, 3 tokens, step 2: start 1 sees

    first step   [x x .]    starts 0 and 1
    step 1       [. x .]    itself, one position on
    step 2       [. x .]    itself, two positions on
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.exponential import softmax

BLOCK = 256  # queries whose scores exist at the same time


class UnrolledKeys:
    """Keys and values of one layer: of every step so far, [B, kv heads, L, head_dim] each.

    Args:
        texts: [B, L], which text a token belongs to; no text sees another. None for one text.
    """

    def __init__(self, texts: mx.array | None) -> None:
        self._texts = texts
        self.keys: list[mx.array] = []
        self.values: list[mx.array] = []

    @property
    def offset(self) -> int:
        """Start t stands at position t + i in step i."""
        return len(self.keys)

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        window: int | None,
    ) -> mx.array:
        """Take in a step's keys and values and return what its queries [B, heads, L, ..] see."""
        self.keys.append(keys)
        self.values.append(values)
        step = len(self.keys) - 1
        # Of its own steps a start sees those that the window reaches back to.
        oldest = 1 if window is None else max(1, step - window + 1)
        view = _View(self._texts, step, window, keys.shape[1])
        n = step + 1 - oldest if step else 0
        own_keys = self.keys[oldest : oldest + n]
        own_values = self.values[oldest : oldest + n]
        return _attention(view, n)(
            queries * scale, self.keys[0], self.values[0], *own_keys, *own_values
        )


class UnrolledCache(NamedTuple):
    """The keys and values of all layers of a head."""

    layers: list[UnrolledKeys]

    @classmethod
    def of(
        cls, head: EagleHead, texts: mx.array | None = None, earlier: Sequence[mx.array] = ()
    ) -> "UnrolledCache":
        """Return one that holds some steps, none at first.

        Args:
            head: whose layers they are.
            texts: [B, L], as in `UnrolledKeys`.
            earlier: what `newest` was after each of these steps, one after the other.
        """
        cache = cls([UnrolledKeys(texts) for _ in head.layers])
        stride = 2 * len(cache.layers)
        for i, layer in enumerate(cache.layers):
            layer.keys += earlier[2 * i :: stride]
            layer.values += earlier[2 * i + 1 :: stride]
        return cache

    @property
    def newest(self) -> list[mx.array]:
        """Keys and values of the last step, layer by layer."""
        return [part[-1] for layer in self.layers for part in (layer.keys, layer.values)]


class _View(NamedTuple):
    """What the queries of one step see of the first step's keys."""

    texts: mx.array | None
    step: int
    window: int | None
    n_kv_heads: int

    def columns(self, start: int, end: int) -> int:
        """Return the first column that any of the queries start to end sees."""
        return 0 if self.window is None else max(0, start + self.step - self.window + 1)

    def mask(self, start: int, end: int) -> mx.array:
        """Return bool [B or 1, 1, 1, end - start, columns]: causal, same text, in the window."""
        first = self.columns(start, end)
        rows, columns = mx.arange(start, end)[:, None], mx.arange(first, end)[None]
        seen = columns <= rows
        if self.window is not None:
            seen = seen & (rows + self.step - columns < self.window)
        if self.texts is None:
            return seen[None, None, None]
        same = self.texts[:, start:end, None] == self.texts[:, None, first:end]
        return (seen & same)[:, None, None]


def _attention(view: _View, n_own: int) -> Callable[..., mx.array]:
    """Return attention over the first step's keys and `n_own` own ones, with its gradient.

    The gradient computes scores again, block by block, so that memory grows with K * L and not
    with its square (as FlashAttention does, arXiv 2205.14135).
    """

    @mx.custom_function
    def attend(queries: mx.array, keys: mx.array, values: mx.array, *own: mx.array) -> mx.array:
        parts = _Parts.of(view, queries, keys, values, own[:n_own], own[n_own:])
        blocks = [parts.block(start).output for start in parts.starts]
        return mx.concatenate(blocks, axis=3).reshape(queries.shape)

    @attend.vjp
    def gradient(primals: Any, cotangent: mx.array, output: mx.array) -> Any:
        queries, keys, values, *own = primals
        parts = _Parts.of(view, queries, keys, values, own[:n_own], own[n_own:])
        return parts.gradient(cotangent, output)

    found: Callable[..., mx.array] = attend
    return found


class _Block(NamedTuple):
    """A block of n queries: what it sees, with G kv heads, R query heads for each."""

    queries: mx.array  # [B, G, R, n, d]
    probabilities: mx.array  # [B, G, R, n, columns]: of the first step's keys
    own: list[mx.array]  # [B, G, R, n, 1] each: of the own keys
    output: mx.array  # [B, G, R, n, d]


class _Parts(NamedTuple):
    """The inputs of one attention; own keys and values are [B, G, 1, L, d] here."""

    view: _View
    queries: mx.array  # [B, G, R, L, d], scaled
    keys: mx.array  # [B, G, L, d]
    values: mx.array
    own_keys: list[mx.array]
    own_values: list[mx.array]

    @classmethod
    def of(
        cls,
        view: _View,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        own_keys: Sequence[mx.array],
        own_values: Sequence[mx.array],
    ) -> "_Parts":
        """Group the query heads by the key head that they share."""
        batch, _, length, width = queries.shape
        grouped = queries.reshape(batch, view.n_kv_heads, -1, length, width)
        own = [[part[:, :, None] for part in parts] for parts in (own_keys, own_values)]
        return cls(view, grouped, keys, values, *own)

    @property
    def starts(self) -> range:
        """Where the blocks begin."""
        return range(0, self.queries.shape[3], BLOCK)

    def block(self, start: int) -> _Block:
        """Return the attention of the queries from `start` on."""
        end = min(start + BLOCK, self.queries.shape[3])
        rows, columns = slice(start, end), slice(self.view.columns(start, end), end)
        queries = self.queries[:, :, :, rows]
        scores = _times(queries, self.keys[:, :, columns].swapaxes(-1, -2))
        scores = mx.where(self.view.mask(start, end), scores, -mx.inf)
        own = [(queries * keys[:, :, :, rows]).sum(-1, keepdims=True) for keys in self.own_keys]
        joined = softmax(mx.concatenate([scores, *own], axis=-1).astype(mx.float32)).astype(
            queries.dtype
        )
        n = scores.shape[-1]
        probabilities, own = (
            joined[..., :n],
            [joined[..., n + i : n + i + 1] for i in range(len(own))],
        )
        output = _times(probabilities, self.values[:, :, columns])
        for probability, values in zip(own, self.own_values, strict=True):
            output = output + probability * values[:, :, :, rows]
        return _Block(queries, probabilities, own, output)

    def gradient(self, cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        """Return the gradients of queries, keys, values, own keys, own values."""
        d_output = cotangent.reshape(self.queries.shape)
        # The gradient of a softmax needs sum_j p_j dp_j, which is the output times its gradient.
        mean = (d_output * output.reshape(self.queries.shape)).sum(-1, keepdims=True)
        d_queries, d_keys, d_values = [], mx.zeros_like(self.keys), mx.zeros_like(self.values)
        d_own_keys: list[list[mx.array]] = [[] for _ in self.own_keys]
        d_own_values: list[list[mx.array]] = [[] for _ in self.own_values]
        for start in self.starts:
            block, end = self.block(start), min(start + BLOCK, self.queries.shape[3])
            rows, columns = slice(start, end), slice(self.view.columns(start, end), end)
            d_out, average = d_output[:, :, :, rows], mean[:, :, :, rows]
            p = block.probabilities
            d_scores = p * (_times(d_out, self.values[:, :, columns].swapaxes(-1, -2)) - average)
            d_query = _times(d_scores, self.keys[:, :, columns])
            d_keys[:, :, columns] += _times_rows(d_scores, block.queries)
            d_values[:, :, columns] += _times_rows(p, d_out)
            for i, q in enumerate(block.own):
                dots = (d_out * self.own_values[i][:, :, :, rows]).sum(-1, keepdims=True)
                d_score = q * (dots - average)
                d_query = d_query + d_score * self.own_keys[i][:, :, :, rows]
                d_own_keys[i].append((d_score * block.queries).sum(2))
                d_own_values[i].append((q * d_out).sum(2))
            d_queries.append(d_query)
        heads = mx.concatenate(d_queries, axis=3).reshape(cotangent.shape)
        own = [mx.concatenate(parts, axis=2) for parts in (*d_own_keys, *d_own_values)]
        return heads, d_keys, d_values, *own


def _times(x: mx.array, y: mx.array) -> mx.array:
    """Return [B, G, R, n, e] for x [B, G, R, n, d] and y [B, G, d, e], as one product per head."""
    batch, groups, repeats, n, width = x.shape
    return (x.reshape(batch, groups, repeats * n, width) @ y).reshape(batch, groups, repeats, n, -1)


def _times_rows(x: mx.array, y: mx.array) -> mx.array:
    """Return [B, G, c, d], summed over queries, for x [B, G, R, n, c] and y [B, G, R, n, d]."""
    batch, groups, repeats, n, _ = x.shape
    flat_x = x.reshape(batch, groups, repeats * n, -1)
    return flat_x.swapaxes(-1, -2) @ y.reshape(batch, groups, repeats * n, -1)
