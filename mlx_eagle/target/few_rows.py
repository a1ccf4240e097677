"""Few-row kernels on the layers of a target: they run while a tree is verified, and only then.

Plain steps, prompts and heads are computed by MLX as before, to the last bit.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.kernels.attention import Attention
from mlx_eagle.kernels.few_rows import Multiply, launch
from mlx_eagle.kernels.shapes import DTYPES, row_tiles
from mlx_eagle.kernels.sites import Site, find_sites, multiplies_in
from mlx_eagle.kernels.verdicts import Plan
from mlx_eagle.kernels.watchdog import Watchdog
from mlx_eagle.target.attention_hook import Call, wrap_attention
from mlx_eagle.target.hooks import Undo, replace_method

Method = Callable[[nn.Module, mx.array], mx.array]
PLAIN_LAYERS = (nn.QuantizedLinear, nn.QuantizedEmbedding)
Kernels = dict[tuple[int, ...], Multiply]  # by the shape [1, M, K] of the rows


class FewRows:
    """Kernels on layers of a model; at first there are none.

    Attributes:
        is_on: whether those that are there run at all.
        rows: numbers of rows for which any of them runs.
        advice: what to tell the user of a stall, until it was told.
    """

    def __init__(self) -> None:
        self.is_on, self.advice = True, ""
        self.rows: list[int] = []
        self._on_stall: Callable[[], None] | None = None
        self._watchdog = Watchdog()
        self._verifies = False
        self._undo: list[Undo] = []
        self._shared: list[_Shared] = []
        self._attentions: dict[Hashable, _Served | None] = {}  # by kind of call
        self._plan = Plan()

    def put_on(
        self, model: nn.Module, plan: Plan, on_stall: Callable[[], None] | None = None
    ) -> None:
        """Put kernels on a model, in place of others.

        Args:
            model: whose layers and attention they serve.
            plan: which of them, and for how many rows.
            on_stall: called once, if they are switched off because rounds with them stall.
        """
        self.release()
        self.is_on, self.rows, self._plan = True, plan.rows, plan
        self._on_stall, self._watchdog = on_stall, Watchdog()
        for site in find_sites(model) if plan.products else []:
            self._undo += self._wrap_site(site, plan)
        if plan.attention:
            self._undo += wrap_attention(model, partial(self._attend, plan))

    def release(self) -> None:
        """Give the layers back as they were."""
        self.rows, self._plan = [], Plan()
        self._shared.clear()
        self._attentions.clear()
        while self._undo:
            self._undo.pop()()

    @property
    def identity(self) -> str:
        """What costs depend on: a digest of which kernels are there; "" if there are none."""
        return hashlib.sha256(repr(self._plan).encode()).hexdigest()[:16] if self.rows else ""

    def take_advice(self) -> str:
        """Return what to tell the user, once."""
        advice, self.advice = self.advice, ""
        return advice

    @contextmanager
    def verifying(self) -> Iterator[None]:
        """Let the kernels run inside."""
        self._verifies = self.is_on
        try:
            yield
        finally:
            self._verifies = False
            for shared in self._shared:
                shared.forget()

    def watch(self, n_rows: int, seconds: float | None) -> None:
        """Take in a round; where rounds with kernels stall, MLX's are used from now on.

        Args:
            n_rows: rows that it verified.
            seconds: until they were read back; None where the caller took part of them.
        """
        if seconds is None or not self.is_on or n_rows not in self.rows:
            return
        if self._watchdog.stalls(n_rows, seconds):
            self.is_on = False
            self.advice = (
                f"rounds with few-row kernels stalled ({seconds:.1f} s for {n_rows} rows): "
                "they are off now; mlx-eagle calibrate tries them again"
            )
            if self._on_stall is not None:
                self._on_stall()

    def _wrap_site(self, site: Site, plan: Plan) -> list[Undo]:
        """Put kernels on one site, if any are planned for it."""
        kernels = _by_shape(site, plan)
        # A hook below would not be reached any more: the tap of what the output layer is given.
        is_hooked = any(type(layer) not in PLAIN_LAYERS for layer in site.layers)
        if not kernels or is_hooked:
            return []
        if site.whole is not None:
            return [replace_method(site.whole, "__call__", partial(self._gated, site, kernels))]
        if len(site.layers) == 1:
            make = partial(self._alone, site, kernels)
            return [replace_method(site.layers[0], multiplies_in(site.layers[0]), make)]
        shared = _Shared(kernels)
        self._shared.append(shared)
        return [
            replace_method(layer, "__call__", partial(self._together, site, shared, i))
            for i, layer in enumerate(site.layers)
        ]

    # Methods of layers, made of the plain ones. They are called hundreds of times per forward pass,
    # so each is one function that looks for its kernel by the shape of the rows.

    def _alone(self, site: Site, kernels: Kernels, plain: Method) -> Method:
        """Return the method of a layer that has a launch of its own."""
        dtype = DTYPES[site.shape.dtype]

        def multiply(layer: nn.Module, x: mx.array) -> mx.array:
            kernel = kernels.get(x.shape) if self._verifies else None
            return plain(layer, x) if kernel is None or x.dtype != dtype else kernel(x)[0]

        return multiply

    def _gated(self, site: Site, kernels: Kernels, plain: Method) -> Method:
        """Return the method of a SwiGLU layer."""
        dtype, down = DTYPES[site.shape.dtype], site.down
        assert down is not None, "gated sites have a layer that reads them"

        def feed_forward(layer: nn.Module, x: mx.array) -> mx.array:
            kernel = kernels.get(x.shape) if self._verifies else None
            if kernel is None or x.dtype != dtype:
                return plain(layer, x)
            output: mx.array = down(kernel(x)[0])
            return output

        return feed_forward

    def _together(self, site: Site, shared: "_Shared", index: int, plain: Method) -> Method:
        """Return the method of one of several layers that share a launch."""
        dtype = DTYPES[site.shape.dtype]

        def multiply(layer: nn.Module, x: mx.array) -> mx.array:
            if not self._verifies or x.dtype != dtype:
                return plain(layer, x)
            output = shared.take(index, x)
            return plain(layer, x) if output is None else output

        return multiply

    def _attend(self, plan: Plan, queries: mx.array, keys: Any, *rest: Any) -> mx.array | None:
        """Return what the attention kernel gives, or None if mlx-lm is to run; see `Call`."""
        if not self._verifies:
            return None
        values, _, scale, mask, sinks = rest
        # Of quantized rows, numbers packed into words and scales: their widths tell the bits.
        packed, rows = keys[:2] if isinstance(keys, tuple) else (keys, keys)
        form = rows.shape[1], packed.shape[3], rows.shape[3], rows.dtype
        key = (queries.shape, form, scale, _kind(mask), sinks is None)
        if key not in self._attentions:
            self._attentions[key] = _attention_of(plan, Call(queries, keys, *rest))
        known = self._attentions[key]
        if known is None or rows.shape[2] < known.least:
            return None
        return known.run(queries, keys, values, mask)


class _Served(NamedTuple):
    """A kind of attention that a kernel serves, from `least` cached tokens on."""

    least: int
    run: Attention


def _attention_of(plan: Plan, call: Call) -> _Served | None:
    """Return the kernel for a kind of calls; None if mlx-lm is to run."""
    heads, kind, n_rows = call.heads, _kind(call.mask), call.queries.shape[2]
    least = plan.attention.get(heads, {}).get(n_rows) if heads is not None else None
    if heads is None or least is None or kind is None:
        return None
    return _Served(least, heads.prepared(n_rows, kind))


class _Shared:
    """Outputs of one launch for several layers, which are called one after another.

    The first one that is called with new rows runs the kernel; when all have taken theirs, nothing
    is kept.
    """

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels
        self._rows: mx.array | None = None
        self._left: dict[int, mx.array] = {}

    def take(self, index: int, x: mx.array) -> mx.array | None:
        """Return the output of one layer for rows x, or None if MLX is to run."""
        if self._rows is not x or index not in self._left:
            kernel = self._kernels.get(x.shape)
            if kernel is None:
                return None
            self._rows, self._left = x, dict(enumerate(kernel(x)))
        output = self._left.pop(index)
        if not self._left:
            self._rows = None
        return output

    def forget(self) -> None:
        """Drop what was not taken."""
        if self._left:
            self._rows, self._left = None, {}


def _kind(mask: Any) -> str | None:
    """Return the kind of a mask that the attention kernel takes; None of another."""
    if isinstance(mask, mx.array):
        return "array" if mask.dtype == mx.bool_ and mask.ndim == 2 else None
    return "causal" if isinstance(mask, str) and mask == "causal" else None


def _by_shape(site: Site, plan: Plan) -> Kernels:
    """Return the kernels of a site by the shape [1, M, K] of the rows that they multiply."""
    planned = plan.products.get(site.shape, {})
    return {
        (1, n, site.shape.k): launch(site.shape, variant, row_tiles(n)).prepared(site.weights, n)
        for n, variant in planned.items()
    }
