"""An mlx-lm model seen as prefill, tree forward and taps.

A *tap* is the target's residual stream at a boundary, handed to the draft head: boundary b is the
stream after b decoder layers, so b = 0 is the embedding and b = n the last layer's output before
the final norm; n + 1 is what that norm gives, which older heads read. Elsewhere taps are called
aux hidden states, captured layers or, in the EAGLE-3 paper, features. There is no per-architecture
code: single layer and rope *instances* are given a subclass, so parameters, quantization and
saving are as before.
"""

import copy
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import cache as stock

from mlx_eagle.cache.model_cache import AnyCache, LayerList, OwnCache, TreeCache
from mlx_eagle.cache.options import WHOLE, KVOptions
from mlx_eagle.cache.recurrent import RecurrentCache
from mlx_eagle.cache.stock import StockCache
from mlx_eagle.cache.window import WindowKVCache
from mlx_eagle.errors import UnsupportedTargetError
from mlx_eagle.static_tree import Shape
from mlx_eagle.target.few_rows import FewRows
from mlx_eagle.target.hooks import Undo, note_updates, wrap_method
from mlx_eagle.target.positions import accept_node_positions, is_rope
from mlx_eagle.tree import DraftTree

Product = Callable[[mx.array], mx.array]  # [.., D] to [.., W]


class Verified(NamedTuple):
    """What the target says about N tokens: logits [N, V] and taps [N, A * D] (None if untapped)."""

    logits: mx.array
    taps: mx.array | None


class Target:
    """A loaded mlx-lm model with the operations that speculative decoding needs.

    Args:
        model: what `mlx_lm.load` returned; it is changed in place, and its modules are not to be
            replaced from then on.
        taps: boundaries whose residual streams are recorded, in ascending order.
        speculate: False keeps mlx-lm's own caches and leaves the model as it is.

    Attributes:
        chains_only: whether no tree may branch, because a layer is recurrent or trees were tried
            and came out wrong (`self_check.py`).
        kv: what caches made from now on keep; try it with `self_check.check_kv_options`.
        few_rows: kernels on the model's layers, shared with twins; none at first.
        foreign_errors: errors that say nothing of the model, but of other machines.

    Raises:
        UnsupportedTargetError: if the model cannot be tapped there or cannot verify anything.
    """

    foreign_errors: ClassVar[tuple[type[Exception], ...]] = ()

    def __init__(self, model: nn.Module, taps: Sequence[int] = (), speculate: bool = True) -> None:
        self.model = model
        self.taps = tuple(taps)
        self.speculates = speculate
        self.kv = WHOLE
        self.few_rows = FewRows()
        # By the id of a table that lives: a head's rows go with it.
        self._row_layers: dict[int, tuple[weakref.ref[mx.array], Product]] = {}
        self._is_first = True  # of the targets on this model; kernels are this one's to release
        self._recorder = _Recorder()
        self.chains_only = self.make_cache().chains_only  # refuses models with unknown caches
        self._hooks: list[Undo] = []
        if speculate:
            self._put_hooks_on()

    def twin(self, taps: Sequence[int] | None = None) -> "Target":
        """Return a second target on the same model; the hooks stay this one's to release.

        Args:
            taps: boundaries for another head; None keeps this one's.

        Raises:
            UnsupportedTargetError: if the model cannot be tapped there.
        """
        twin = copy.copy(self)
        twin._hooks, twin._is_first = [], False
        if taps is not None:
            twin.taps, twin._recorder = tuple(taps), _Recorder()
            twin._put_taps_on()
        return twin

    def release(self) -> None:
        """Take everything off the model that was put on it, so that it is as it was loaded.

        Neither this target nor its twins can be used from then on. Of several targets made from
        one model the newest is released first.
        """
        if self._is_first:
            self.few_rows.release()
        while self._hooks:
            self._hooks.pop()()

    def _put_hooks_on(self) -> None:
        """Let the model hand out taps and take a position per node; all or nothing."""
        try:
            if self.chains_only:
                note_updates(self.model, self._hooks)
            self._put_taps_on()
            for _, module in self.model.named_modules():
                if is_rope(module):
                    self._hooks += accept_node_positions(module)
        except BaseException:
            self.release()
            raise

    def _put_taps_on(self) -> None:
        """Let the model hand out taps; all or nothing."""
        try:
            for boundary in self.taps:
                self._hooks.append(self._tap(boundary))
        except BaseException:
            self.release()
            raise

    @cached_property
    def vocab_size(self) -> int | None:
        """Token ids the target knows, padding included; None where the embedding is not clear."""
        try:
            rows: int = self.embedding.weight.shape[0]
        except UnsupportedTargetError:
            return None
        return rows

    @property
    def hosts(self) -> str:
        """The hosts that hold a part of it each, in words; "" if all of it is here."""
        return ""

    @property
    def lost(self) -> str:
        """Why nothing can be computed any more; "" while it can. Other machines may be lost."""
        return ""

    @property
    def layers_before(self) -> int:
        """Layers that run before those of this model: on other machines, if there are any."""
        return 0

    @property
    def queries_per_key(self) -> int:
        """Queries that share a key and a value in attention; 1 where the model does not say."""
        args = getattr(self.model, "args", None)
        n_queries = getattr(args, "num_attention_heads", None)
        n_keys = getattr(args, "num_key_value_heads", None)
        if isinstance(n_queries, int) and isinstance(n_keys, int) and n_keys > 0:
            return max(n_queries // n_keys, 1)
        return 1

    @cached_property
    def n_logits(self) -> int:
        """Logits after every node: the vocabulary, with padding that the embedding may lack."""
        tree = DraftTree.chain(mx.array([0]))
        return self.verify(tree, self.make_cache()).logits.shape[-1]  # shapes alone: never run

    @cached_property
    def embedding(self) -> nn.Module:
        """The token embedding: [..] ids to [.., D]; heads share it.

        Raises:
            UnsupportedTargetError: if the model does not have exactly one.
        """
        kinds = (nn.Embedding, nn.QuantizedEmbedding)
        found = [(n, m) for n, m in self.model.named_modules() if isinstance(m, kinds)]
        named = [m for n, m in found if n.endswith(("embed_tokens", "wte", "tok_embeddings"))]
        if len(found) == 1 or len(named) == 1:
            return named[0] if len(named) == 1 else found[0][1]
        raise UnsupportedTargetError(
            f"the target has {len(found)} embeddings ({', '.join(n for n, _ in found)}); "
            "which one reads the tokens is not clear"
        )

    @cached_property
    def unembed(self) -> Callable[[mx.array], mx.array]:
        """The output layer: [.., D] hidden states after the final norm to [.., V] logits.

        It is the linear layer alone, without what some models do to logits afterwards (soft caps,
        scales), which heads that share it were not trained with either.
        """
        layer = output_layer(self.model, self.vocab_size)
        return layer if layer is not None else self.embedding.as_linear

    def output_rows(self, ids: mx.array) -> Product:
        """Return the output layer for the tokens `ids` [W] alone: [.., D] to [.., W].

        Its rows are gathered once for each table, packed as they are where they are quantized, and
        held for as long as somebody else holds the table.
        """
        known, key = self._row_layers, id(ids)
        if key not in known:
            layer = output_layer(self.model, self.vocab_size)
            rows = rows_of(self.embedding if layer is None else layer, ids)
            known[key] = weakref.ref(ids, lambda _: known.pop(key, None)), rows
        return known[key][1]

    def checking(self) -> AbstractContextManager[None]:
        """Return what surrounds the self check of `kv`, in which the model is run directly."""
        return nullcontext()

    def check_shape(self, shape: Shape) -> None:
        """Refuse a shape that this target cannot verify.

        Raises:
            UnsupportedTargetError: if a tree may branch and only chains can be verified.
        """
        if self.chains_only and shape.width > 1:
            raise UnsupportedTargetError(
                f"a tree of width {shape.width} was asked for, but this target verifies chains "
                "only (it has recurrent layers, or code that trees break); ask for a width of 1"
            )

    def _tap(self, boundary: int) -> Undo:
        """Make the layer at `boundary` record the residual stream whenever it runs."""
        layers, recorder, place = self.model.layers, self._recorder, boundary - self.layers_before
        if not 0 <= place <= len(layers) + 1:
            n_layers = self.layers_before + len(layers)
            raise UnsupportedTargetError(
                f"the head taps boundary {boundary}, but the target has boundaries 0 to "
                f"{n_layers}, and {n_layers + 1} after the final norm"
            )

        def note_input(plain: Any, self: nn.Module, x: mx.array, *args: Any, **kwargs: Any) -> Any:
            recorder.note(boundary, x)
            return plain(self, x, *args, **kwargs)

        def note_output(plain: Any, self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            out = plain(self, *args, **kwargs)
            recorder.note(boundary, out[0] if isinstance(out, tuple) else out)
            return out

        if place > len(layers):
            # The output layer is given what the final norm gives (minicpm scales it in between).
            output = output_layer(self.model, self.vocab_size)
            name = "__call__" if output else "as_linear"
            return wrap_method(output or self.embedding, name, note_input)
        if place == 0:
            return wrap_method(layers[0], "__call__", note_input)
        return wrap_method(layers[place - 1], "__call__", note_output)

    def make_cache(self) -> AnyCache:
        """Return an empty cache for one conversation.

        Raises:
            UnsupportedTargetError: if a layer keeps a state of a kind that is not known here.
        """
        layers = stock.make_prompt_cache(self.model)
        if not self.speculates:
            return StockCache([self.kv.stock_layer(layer) for layer in layers])
        return TreeCache([_own_layer(layer, self.kv) for layer in layers])

    def extend(self, tokens: mx.array, cache: AnyCache) -> mx.array | None:
        """Run committed tokens [L] through the target and commit their rows.

        Returns:
            Their taps [L, A * D]; None if nothing is tapped. Nothing is evaluated.
        """
        return self.forward(tokens, cache).taps

    def forward(self, tokens: mx.array, cache: AnyCache) -> Verified:
        """Run committed tokens [L] through the target and commit their rows.

        Returns:
            Their logits [L, V], which cost nothing unless they are evaluated, and their taps.
        """
        out = self._run(DraftTree.chain(tokens), cache)
        cache.commit(range(tokens.shape[0]))
        return out

    def verify(self, tree: DraftTree, cache: AnyCache) -> Verified:
        """Run all nodes of a tree through the target at once; nothing is committed.

        Every node sees the committed tokens and its own ancestors, at the position that it would
        have in plain decoding (tree attention; SpecInfer, arXiv 2305.09781, section 4.2).
        """
        with self.few_rows.verifying():
            return self._run(tree, cache)

    def _run(self, tree: DraftTree, cache: AnyCache) -> Verified:
        """Run all nodes of a tree through the target at once."""
        assert tree.is_chain or not self.chains_only, "this target verifies chains only"
        cache.open(tree)
        with self._recorder.open() as recorded:
            logits = self.model(tree.tokens[None], cache=cache.layers)[0]  # [N, V]
        return Verified(logits, self._joined(recorded) if self.taps else None)

    def _joined(self, recorded: dict[int, mx.array]) -> mx.array:
        """Return the streams [1, N, D] of one forward at all taps, side by side: [N, A * D]."""
        check_recorded(recorded, self.taps)
        return mx.concatenate([recorded[b][0] for b in self.taps], axis=-1)


def check_recorded(recorded: Container[int], taps: Iterable[int]) -> None:
    """Refuse a model that has not come by all of these boundaries.

    Raises:
        UnsupportedTargetError: naming the first one.
    """
    if missed := [boundary for boundary in taps if boundary not in recorded]:
        raise UnsupportedTargetError(
            f"the target's stream at boundary {missed[0]} is not where it is in other models, so "
            "the head cannot read it; load the target without a head to decode plainly"
        )


class _Recorder:
    """Where hooks leave the streams of one forward; of other forwards they leave nothing."""

    def __init__(self) -> None:
        self._recorded: dict[int, mx.array] | None = None

    @contextmanager
    def open(self) -> Iterator[dict[int, mx.array]]:
        """Return what will hold the streams [1, N, D] of the forward inside, by boundary."""
        recorded: dict[int, mx.array] = {}
        self._recorded = recorded
        try:
            yield recorded
        finally:
            self._recorded = None

    def note(self, boundary: int, stream: mx.array) -> None:
        """Take in the stream at a boundary."""
        if self._recorded is not None:
            self._recorded[boundary] = stream


def _own_layer(layer: Any, kv: KVOptions) -> OwnCache | LayerList:
    """Return our cache, or several, in place of one of mlx-lm's, or refuse by name."""
    if type(layer) is stock.CacheList:
        return LayerList(*(_own_cache(part, kv) for part in layer.caches))
    return _own_cache(layer, kv)


def _own_cache(layer: Any, kv: KVOptions) -> OwnCache:
    """Return our cache in place of one of mlx-lm's, or refuse by name."""
    if type(layer) is stock.KVCache:
        return kv.make_layer()
    if type(layer) is stock.RotatingKVCache and layer.keep == 0:
        return WindowKVCache(layer.max_size)
    if type(layer) is stock.ArraysCache:
        return RecurrentCache(len(layer.cache))
    kind = type(layer).__name__
    raise UnsupportedTargetError(
        f"a layer of this target keeps its state in {kind}, for which there is no way back from "
        "rejected tokens yet; load it without a head to decode plainly"
    )


def rows_of(layer: nn.Module, ids: mx.array) -> Product:
    """Return a product with some rows of a linear layer or an embedding."""
    parts = {name: layer[name][ids] for name in ("weight", "scales", "biases") if name in layer}
    bias = layer.bias[ids] if "bias" in layer else 0

    def product(x: mx.array) -> mx.array:
        found: mx.array = x @ parts["weight"].T
        return found + bias

    def quantized_product(x: mx.array) -> mx.array:
        kind = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        packed = (parts["weight"], parts["scales"], parts.get("biases"))
        found: mx.array = mx.quantized_matmul(x, *packed, transpose=True, **kind)
        return found + bias

    return quantized_product if "scales" in parts else product


# What models call the linear layer that gives logits, where the embedding does not.
_OUTPUT_NAMES = ("lm_head", "output", "embed_out", "ff_out")


def output_layer(model: nn.Module, vocab_size: int | None) -> nn.Module | None:
    """Return the layer that gives logits, or None where the embedding gives them.

    Args:
        model: the target.
        vocab_size: rows of its embedding; None where they are not known.
    """
    kinds = (nn.Linear, nn.QuantizedLinear)
    found = [
        module
        for name, module in model.named_modules()
        if name.endswith(_OUTPUT_NAMES)
        and isinstance(module, kinds)
        and vocab_size in (None, module.weight.shape[0])
    ]
    return found[0] if len(found) == 1 else None
