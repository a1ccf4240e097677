"""Few-row kernels on the layers of a target: they run while a tree is verified, and only then.

Plain steps, prompts and heads are computed by MLX as before, to the last bit.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.kernels.attention_trial import Heads
from mlx_eagle.kernels.few_rows import Launch, launch
from mlx_eagle.kernels.shapes import DTYPES, Shape, row_tiles
from mlx_eagle.kernels.sites import Site, find_sites, multiplies_in
from mlx_eagle.kernels.verdicts import Plan
from mlx_eagle.kernels.watchdog import Watchdog
from mlx_eagle.target.attention_hook import wrap_attention
from mlx_eagle.target.hooks import Undo, wrap_method


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
        self.is_on, self.rows = True, plan.rows
        self._on_stall, self._watchdog = on_stall, Watchdog()
        for site in find_sites(model) if plan.products else []:
            if launches := _launches(site.shape, plan):
                self._undo += self._wrap_site(site, launches)
        if plan.attention:
            self._undo += wrap_attention(model, partial(self._attend, plan))

    def release(self) -> None:
        """Give the layers back as they were."""
        self.rows = []
        while self._undo:
            self._undo.pop()()

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

    def watch(self, n_rows: int, seconds: float) -> None:
        """Take in a round; where rounds with kernels stall, MLX's are used from now on.

        Args:
            n_rows: rows that it verified.
            seconds: until they were read back.
        """
        if not self.is_on or n_rows not in self.rows:
            return
        if self._watchdog.stalls(n_rows, seconds):
            self.is_on = False
            self.advice = (
                f"rounds with few-row kernels stalled ({seconds:.1f} s for {n_rows} rows): "
                "they are off now; mlx-eagle calibrate tries them again"
            )
            if self._on_stall is not None:
                self._on_stall()

    def _wrap_site(self, site: Site, launches: Mapping[int, Launch]) -> list[Undo]:
        """Put kernels on one site."""
        dtype, weights = DTYPES[site.shape.dtype], site.weights

        def run(x: mx.array) -> list[mx.array] | None:
            """Return what the kernel gives for rows x [1, M, K], or None if MLX is to run."""
            if not self._verifies or x.ndim != 3 or x.dtype != dtype or x.shape[0] != 1:
                return None
            kernel = launches.get(x.shape[1])
            return kernel(x, weights) if kernel is not None else None

        if site.whole is not None:
            return [_wrap_gated(site, run)]
        shared = _Shared(run) if len(site.layers) > 1 else None
        return [_wrap(layer, i, run, shared) for i, layer in enumerate(site.layers)]

    def _attend(
        self, plan: Plan, heads: Heads, queries: mx.array, keys: Any, values: Any, mask: Any
    ) -> mx.array | None:
        """Return what the attention kernel gives, or None if mlx-lm is to run; see `Attend`."""
        if not self._verifies:
            return None
        least = plan.attention.get(heads, {}).get(queries.shape[2])
        length = (keys[0] if heads.group_size else keys).shape[2]
        if least is None or length < least or not _is_served(mask):
            return None
        return heads.own(queries, keys, values, mask)


Run = Callable[[mx.array], list[mx.array] | None]


class _Shared:
    """Outputs of one launch for several layers, which are called one after another.

    The first one that is called with new rows runs the kernel; when all have taken theirs, nothing
    is kept.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._rows: mx.array | None = None
        self._left: dict[int, mx.array] = {}

    def take(self, index: int, x: mx.array) -> mx.array | None:
        """Return the output of one layer for rows x, or None if MLX is to run."""
        if self._rows is not x or index not in self._left:
            outputs = self._run(x)
            if outputs is None:
                return None
            self._rows, self._left = x, dict(enumerate(outputs))
        output = self._left.pop(index)
        if not self._left:
            self._rows = None
        return output


def _is_served(mask: Any) -> bool:
    """Say whether the attention kernel takes a mask."""
    if isinstance(mask, mx.array):
        return mask.dtype == mx.bool_ and mask.ndim == 2
    return mask is None or mask == "causal"


def _launches(shape: Shape, plan: Plan) -> dict[int, Launch]:
    """Return the kernel for every number of rows that one is planned for."""
    rows = plan.products.get(shape, {})
    return {n: launch(shape, variant, row_tiles(n)) for n, variant in rows.items()}


def _wrap(layer: nn.Module, index: int, run: Run, shared: _Shared | None) -> Undo:
    """Put a kernel on one layer, or its share of one that serves several."""

    def multiply(plain: Any, self: nn.Module, x: mx.array) -> mx.array:
        if shared is not None:
            output = shared.take(index, x)
        else:
            outputs = run(x)
            output = outputs[0] if outputs is not None else None
        if output is None:
            output = plain(self, x)
        return output

    return wrap_method(layer, multiplies_in(layer), multiply)


def _wrap_gated(site: Site, run: Run) -> Undo:
    """Put a kernel on a SwiGLU layer."""
    whole, down = site.whole, site.down
    assert whole is not None and down is not None, "only gated sites are whole layers"

    def feed_forward(plain: Any, self: nn.Module, x: mx.array) -> mx.array:
        outputs = run(x)
        output: mx.array = plain(self, x) if outputs is None else down(outputs[0])
        return output

    return wrap_method(whole, "__call__", feed_forward)
