"""What of the target a head learns from besides stored features: its embedding and its logits."""

from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.target.target import Target
from mlx_eagle.training.features.compute import LogitMap, logits_after


def _unchanged(logits: mx.array) -> mx.array:
    """Return the logits as they are."""
    return logits


class Teacher(NamedTuple):
    """The two layers of a target that know tokens.

    Attributes:
        embedding: ids [..] to embeddings [.., D].
        output: the layer whose rows are the tokens; the embedding where both are one.
        after: what the target does to its logits after that layer.
    """

    embedding: nn.Module
    output: nn.Module
    after: LogitMap = _unchanged

    @classmethod
    def of(cls, target: Target) -> "Teacher":
        """Return the layers of a target.

        Raises:
            UnsupportedTargetError: if its logits cannot be recomputed from its final states.
        """
        unembed = target.unembed
        output = unembed if isinstance(unembed, nn.Module) else target.embedding
        return cls(target.embedding, output, logits_after(target))

    def logits_of(self, ids: mx.array | None = None) -> LogitMap:
        """Return the map from final states [.., D] to the target's logits of some tokens [.., W].

        Args:
            ids: [W], the tokens; None for all.
        """
        rows, after = OutputRows(self.output, ids), self.after
        return lambda final: after(rows(final))

    def weight(self, ids: mx.array) -> mx.array:
        """Return the output layer's rows [W, D] for tokens [W], as plain numbers."""
        return OutputRows(self.output, ids).plain_weight


class OutputRows:
    """A target's output layer, quantized or not, for some of its tokens only.

    Args:
        layer: a linear layer or an embedding.
        ids: [W], the tokens; None for all.
    """

    def __init__(self, layer: Any, ids: mx.array | None) -> None:
        names = [name for name in ("weight", "scales", "biases", "bias") if name in layer]
        self._arrays: dict[str, mx.array] = {
            name: layer[name] if ids is None else layer[name][ids] for name in names
        }
        self._packing: dict[str, Any] = {}
        if "scales" in self._arrays:
            self._packing = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        mx.eval(self._arrays)  # compiled functions use them as constants

    @property
    def plain_weight(self) -> mx.array:
        """The weight [W, D], not quantized."""
        found = self._arrays
        if not self._packing:
            return found["weight"]
        return mx.dequantize(found["weight"], found["scales"], found.get("biases"), **self._packing)

    def __call__(self, x: mx.array) -> mx.array:
        """Return logits [.., W] for final hidden states x [.., D], in the layer's own type."""
        found = self._arrays
        own = found["scales" if self._packing else "weight"].dtype
        x = x.astype(own) if mx.issubdtype(own, mx.floating) else x
        if self._packing:
            scales, biases = found["scales"], found.get("biases")
            out = mx.quantized_matmul(x, found["weight"], scales, biases, **self._packing)
        else:
            out = x @ found["weight"].T
        with_bias: mx.array = out + found["bias"] if "bias" in found else out
        return with_bias
