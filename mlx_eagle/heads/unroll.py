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
from typing import Any, NamedTuple, cast

import mlx.core as mx

from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.exponential import exponential

BLOCK = 256  # queries whose scores exist at the same time
FAR = 1e9  # by which the scores of what is not seen are lowered


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
        own = [*self.keys[oldest:], *self.values[oldest:]]
        output, _ = _attention(view)(queries * scale, self.keys[0], self.values[0], *own)
        return output


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
        if self.window is None:
            return 0
        return min(max(0, start + self.step - self.window + 1), end - 1)

    def bias(self, start: int, end: int) -> mx.array:
        """Return [B or 1, 1, 1, end - start, columns] float32, far below 0 where nothing is seen.

        A query sees what came before, in the same text, in the window.
        """
        first = self.columns(start, end)
        rows, columns = mx.arange(start, end)[:, None], mx.arange(first, end)[None]
        seen = columns <= rows
        if self.window is not None:
            seen = seen & (rows + self.step - columns < self.window)
        if self.texts is None:
            seen = seen[None]
        else:
            seen = seen & (self.texts[:, start:end, None] == self.texts[:, None, first:end])
        return ((seen.astype(mx.float32) - 1) * FAR)[:, None, None]


def _attention(view: _View) -> Callable[..., tuple[mx.array, mx.array]]:
    """Return attention over the first step's keys and own ones, with its gradient.

    It returns what the queries see, and the logarithm of what their scores' exponentials add up to.
    With that the gradient computes the probabilities again, block by block, so that memory grows
    with K * L and not with its square (as FlashAttention does, arXiv 2205.14135).
    """

    @mx.custom_function
    def attend(queries: mx.array, keys: mx.array, values: mx.array, *own: mx.array) -> Any:
        parts = _Parts.of(view, queries, keys, values, own)
        blocks = list[tuple[mx.array, mx.array]]()
        for rows in parts.blocks:
            blocks.append(parts.after(*blocks[-1:]).attend(rows))
        outputs, totals = (mx.concatenate(list(p), axis=3) for p in zip(*blocks, strict=True))
        return outputs.reshape(queries.shape), totals

    @attend.vjp
    def gradient(primals: Any, cotangents: Any, outputs: Any) -> Any:
        # MLX would compute the probabilities of all steps before the gradient of the last arrives.
        queries, keys, values, *own = mx.depends(list(primals), [cotangents[0]])
        parts = _Parts.of(view, queries, keys, values, own)
        d_output, output = (x.reshape(parts.queries.shape) for x in (cotangents[0], outputs[0]))
        # The gradient of a softmax needs sum_j p_j dp_j, which is the output times its gradient.
        mean = (d_output.astype(mx.float32) * output.astype(mx.float32)).sum(-1, keepdims=True)
        total = _Gradients.none(parts)
        for rows in parts.blocks:
            before = (total.queries[-1], total.keys[0], total.values[0]) if total.queries else ()
            total.add(parts.after(before), rows, d_output[:, :, :, rows], mean, outputs[1])
        found = total.joined(queries.shape)
        # Kernels further back take the type of what they are given for that of their input.
        return [d.astype(x.dtype) for d, x in zip(found, primals, strict=True)]

    return cast(Callable[..., tuple[mx.array, mx.array]], attend)


class _Parts(NamedTuple):
    """The inputs of one attention, with G kv heads and R query heads for each."""

    view: _View
    queries: mx.array  # [B, G, R, L, d], scaled
    keys: mx.array  # [B, G, L, d]
    values: mx.array
    own_keys: list[mx.array]  # [B, G, 1, L, d] each
    own_values: list[mx.array]

    @classmethod
    def of(
        cls,
        view: _View,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        own: Sequence[mx.array],
    ) -> "_Parts":
        """Group the query heads by the key head that they share; `own` are keys, then values."""
        batch, _, length, width = queries.shape
        grouped = queries.reshape(batch, view.n_kv_heads, -1, length, width)
        n = len(own) // 2
        own_keys, own_values = ([part[:, :, None] for part in x] for x in (own[:n], own[n:]))
        return cls(view, grouped, keys, values, own_keys, own_values)

    def after(self, *before: tuple[mx.array, ...]) -> "_Parts":
        """Return the same, to be read when other arrays are there: blocks come one by one.

        MLX would begin all blocks before it ends one, and hold their scores together.
        """
        others = [array for arrays in before for array in arrays]
        if not others:
            return self
        return self._replace(queries=mx.depends([self.queries], others)[0])

    @property
    def blocks(self) -> list[slice]:
        """The queries, a block at a time."""
        length = self.queries.shape[3]
        return [slice(at, min(at + BLOCK, length)) for at in range(0, length, BLOCK)]

    def seen(self, rows: slice) -> slice:
        """Return the first step's keys that any query of a block sees."""
        return slice(self.view.columns(rows.start, rows.stop), rows.stop)

    def scores(self, rows: slice) -> tuple[mx.array, list[mx.array]]:
        """Return a block's scores of the first step's keys [B, G, R, n, columns], and of own ones.

        These are [B, G, R, n, 1] each; all are float32.
        """
        queries = self.queries[:, :, :, rows]
        scores = _times(queries, self.keys[:, :, self.seen(rows)].swapaxes(-1, -2))
        scores = scores.astype(mx.float32) + self.view.bias(rows.start, rows.stop)
        own = [(queries * keys[:, :, :, rows]).sum(-1, keepdims=True) for keys in self.own_keys]
        return scores, [score.astype(mx.float32) for score in own]

    def attend(self, rows: slice) -> tuple[mx.array, mx.array]:
        """Return what a block sees [B, G, R, n, d], and its total [B, G, R, n, 1]."""
        scores, own = self.scores(rows)
        highest = scores.max(-1, keepdims=True)
        for score in own:
            highest = mx.maximum(highest, score)
        raised, own = exponential(scores - highest), [exponential(s - highest) for s in own]
        total = sum(own, raised.sum(-1, keepdims=True))
        output = _times(raised.astype(self.values.dtype), self.values[:, :, self.seen(rows)])
        for share, values in zip(own, self.own_values, strict=True):
            output = output + share * values[:, :, :, rows]
        return (output / total).astype(self.values.dtype), highest + mx.log(total)


class _Gradients(NamedTuple):
    """Gradients of `_Parts`, as far as blocks are added up."""

    queries: list[mx.array]
    keys: list[mx.array]  # of all blocks so far: one array
    values: list[mx.array]
    own_keys: list[list[mx.array]]
    own_values: list[list[mx.array]]

    @classmethod
    def none(cls, parts: _Parts) -> "_Gradients":
        """Return those of no block."""
        keys, values = ([mx.zeros(x.shape, mx.float32)] for x in (parts.keys, parts.values))
        n = len(parts.own_keys)
        return cls([], keys, values, [[] for _ in range(n)], [[] for _ in range(n)])

    def add(
        self, parts: _Parts, rows: slice, d_out: mx.array, mean: mx.array, total: mx.array
    ) -> None:
        """Add those of a block, for the gradient `d_out` [B, G, R, n, d] of what it sees."""
        seen, queries = parts.seen(rows), parts.queries[:, :, :, rows]
        mean, total = mean[:, :, :, rows], total[:, :, :, rows]
        scores, own = parts.scores(rows)
        shares = exponential(scores - total)
        d_shares = _times(d_out, parts.values[:, :, seen].swapaxes(-1, -2))
        d_scores = d_shares.astype(mx.float32) - mean
        d_scores = (shares * d_scores).astype(queries.dtype)
        d_queries = _times(d_scores, parts.keys[:, :, seen])
        self.keys[0][:, :, seen] += _times_rows(d_scores, queries)
        self.values[0][:, :, seen] += _times_rows(shares.astype(queries.dtype), d_out)
        for i, score in enumerate(own):
            share = exponential(score - total)
            dots = (d_out * parts.own_values[i][:, :, :, rows]).sum(-1, keepdims=True)
            d_score = share * (dots - mean)
            d_queries = d_queries + d_score * parts.own_keys[i][:, :, :, rows]
            self.own_keys[i].append((d_score * queries).sum(2))
            self.own_values[i].append((share * d_out).sum(2))
        self.queries.append(d_queries)

    def joined(self, shape: tuple[int, ...]) -> list[mx.array]:
        """Return all gradients, that of the queries in their own shape."""
        queries = mx.concatenate(self.queries, axis=3).reshape(shape)
        own = [mx.concatenate(parts, axis=2) for parts in (*self.own_keys, *self.own_values)]
        return [queries, self.keys[0], self.values[0], *own]


def _times(x: mx.array, y: mx.array) -> mx.array:
    """Return [B, G, R, n, e] for x [B, G, R, n, d] and y [B, G, d, e], as one product per head."""
    batch, groups, repeats, n, width = x.shape
    return (x.reshape(batch, groups, repeats * n, width) @ y).reshape(batch, groups, repeats, n, -1)


def _times_rows(x: mx.array, y: mx.array) -> mx.array:
    """Return [B, G, c, d], summed over queries, for x [B, G, R, n, c] and y [B, G, R, n, d]."""
    batch, groups, repeats, n, _ = x.shape
    flat_x = x.reshape(batch, groups, repeats * n, -1)
    return flat_x.swapaxes(-1, -2) @ y.reshape(batch, groups, repeats * n, -1)
