"""Where the few-row product can stand in for layers of a model.

A *site* is one launch: a quantized layer, or layers that read the same rows. Layers are recognised
by what they are and by the names that mlx-lm gives to the parts of attention and SwiGLU; a SwiGLU
layer is tried before it is taken for one, because its activation stands in code and not in a name.
"""

from collections.abc import Iterator
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.kernels.shapes import Shape, Weights

PROJECTIONS = (("q_proj", "k_proj", "v_proj"), ("wq", "wk", "wv"))
OUTPUTS = ("lm_head", "output", "embed_out", "ff_out")
GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
# Relative difference up to which a layer is one of SwiGLU; other activations differ by far more.
SAME_LAYER = 0.05
LARGE = 30.0  # inputs as large as this find limits that some models put on their activations

Quantized = nn.QuantizedLinear | nn.QuantizedEmbedding


class Site(NamedTuple):
    """Layers that one launch can replace.

    Attributes:
        shape: what is multiplied.
        layers: that hold the weights, in the order of the shape's matrices.
        whole: the SwiGLU layer of a gated site; None elsewhere.
        down: the layer of it that reads what the launch gives.
    """

    shape: Shape
    layers: tuple[Quantized, ...]
    whole: nn.Module | None = None
    down: nn.Module | None = None

    @property
    def weights(self) -> tuple[Weights, ...]:
        """The matrices."""
        return tuple(_weights(layer) for layer in self.layers)

    @property
    def entrance(self) -> nn.Module:
        """The module that is given the rows."""
        return self.whole if self.whole is not None else self.layers[0]


def _weights(layer: Quantized) -> Weights:
    assert layer.biases is not None, "affine layers have biases"
    return Weights(layer.weight, layer.scales, layer.biases, layer.get("bias"))


def multiplies_in(module: nn.Module) -> str:
    """Return the method in which a module is given rows."""
    return "as_linear" if isinstance(module, nn.QuantizedEmbedding) else "__call__"


def find_sites(model: nn.Module) -> list[Site]:
    """Return the sites of a model; no layer is in two of them."""
    is_swiglu = _Trials()
    modules = [module for _, module in model.named_modules()]
    together = [site for module in modules for site in _joint_sites(module, is_swiglu)]
    taken = {id(layer) for site in together for layer in site.layers}
    # An embedding multiplies only where no other layer gives the logits.
    outputs = {
        module.weight.shape[0]
        for name, module in model.named_modules()
        if name.endswith(OUTPUTS) and isinstance(module, nn.Linear | nn.QuantizedLinear)
    }
    alone = []
    for module in modules:
        is_idle = isinstance(module, nn.QuantizedEmbedding) and module.weight.shape[0] in outputs
        if isinstance(module, Quantized) and id(module) not in taken and not is_idle:
            shape = _shape((module,))
            alone += [] if shape is None else [Site(shape, (module,))]
    return [*together, *alone]


def _joint_sites(module: nn.Module, is_swiglu: "_Trials") -> Iterator[Site]:
    """Return the sites of several layers directly below a module."""
    for names in PROJECTIONS:
        layers = _below(module, names)
        if layers and (shape := _shape(layers)) is not None:
            yield Site(shape, layers)
    for gate, up, down in GATED:
        layers, after = _below(module, (gate, up)), module.get(down)
        shape = _shape(layers) if layers else None
        if shape is None or not isinstance(after, nn.Module):
            continue
        is_pair = shape.ns[0] == shape.ns[1] and not shape.has_bias
        if is_pair and is_swiglu(module, layers, after):
            yield Site(shape._replace(is_gated=True), layers, module, after)
        else:
            yield Site(shape, layers)


def _below(module: nn.Module, names: tuple[str, ...]) -> tuple[Quantized, ...]:
    """Return the quantized layers with these names below a module; none unless all are there."""
    found = tuple(module.get(name) for name in names)
    layers = tuple(layer for layer in found if isinstance(layer, Quantized))
    return layers if len(layers) == len(names) else ()


def _shape(layers: tuple[Quantized, ...]) -> Shape | None:
    """Return what one launch for these layers multiplies; None where there can be none."""
    found = set()
    for layer in layers:
        if layer.mode != "affine" or layer.weight.ndim != 2:
            return None
        k = layer.weight.shape[1] * 32 // layer.bits
        dtype = str(layer.scales.dtype).removeprefix("mlx.core.")
        bias = layer.get("bias")
        if bias is not None and bias.dtype != layer.scales.dtype:
            return None
        found.add((k, layer.bits, layer.group_size, dtype, bias is not None))
    if len(found) != 1:
        return None
    k, bits, group, dtype, has_bias = found.pop()
    shape = Shape(k, tuple(layer.weight.shape[0] for layer in layers), bits, group, dtype)
    return shape._replace(has_bias=has_bias) if shape.fault is None else None


class _Trials:
    """Which classes of layers are SwiGLU: each is tried once."""

    def __init__(self) -> None:
        self._found: dict[type[nn.Module], bool] = {}

    def __call__(self, module: nn.Module, layers: tuple[Quantized, ...], down: nn.Module) -> bool:
        """Say whether a module's class gives what SwiGLU gives."""
        kind = type(module)
        if kind not in self._found:
            self._found[kind] = _is_swiglu(module, layers, down)
        return self._found[kind]


def _is_swiglu(module: nn.Module, layers: tuple[Quantized, ...], down: nn.Module) -> bool:
    """Say whether a module gives what SwiGLU gives of its three layers (arXiv 2002.05202)."""
    gate, up = layers
    k = gate.weight.shape[1] * 32 // gate.bits
    rows = mx.random.normal((1, 2, k), key=mx.random.key(0)).astype(gate.scales.dtype)
    for x in (rows, LARGE * rows):
        try:
            found = module(x).astype(mx.float32)
        except Exception:  # other code under these names may want anything
            return False
        expected = down(nn.silu(gate(x)) * up(x)).astype(mx.float32)
        if found.shape != expected.shape:
            return False
        error = mx.linalg.norm(found - expected) / mx.maximum(mx.linalg.norm(expected), 1e-20)
        if not float(error) <= SAME_LAYER:
            return False
    return True
