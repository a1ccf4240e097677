"""Whether a converted target says what its source says: finite weights, and one short forward."""

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.convert.checkpoint import read_weights, require_finite
from mlx_eagle.convert.quantization import Quantization
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.folders import find_weights
from mlx_eagle.files.quoting import listed, quote

N_TOKENS = 8  # of the forward pass
SHARE_OF_MEMORY = 0.4  # that a source may take so that both are run

# Relative difference of the logits that is rounding: of a type's 8 bits, of quantization by bits.
# Two or three bits may leave little of a small model; there only finite logits are asked for.
ROUNDING = 0.1
QUANTIZATION = {8: 0.3, 6: 0.5, 5: 0.8, 4: 1.0}


def short_forward(network: nn.Module, folder: Path) -> mx.array | None:
    """Return the logits [L, V] of a few tokens; None where this machine cannot run the model."""
    n_bytes = sum(file.stat().st_size for file in find_weights(folder))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if n_bytes > SHARE_OF_MEMORY * memory:
        return None
    try:
        return _forward(network)
    except RuntimeError:  # kernels of its quantization are missing, as bitnet's are without Metal
        return None


def _forward(network: nn.Module) -> mx.array:
    """Return the logits [L, V] of a few tokens, computed."""
    logits: mx.array = network(mx.arange(1, N_TOKENS + 1)[None])[0].astype(mx.float32)
    mx.eval(logits)
    return logits


def check_weights(source: Path, out: Path, name: str) -> None:
    """Refuse a result with weights that are no finite numbers.

    Raises:
        CheckpointError: naming the tensors, and what helps.
    """
    broken: list[str] = []
    for file in find_weights(out):
        for tensor, array in read_weights(file).items():
            if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all().item():
                broken.append(tensor)
    if not broken:
        return
    for file in find_weights(source):
        require_finite(read_weights(file))
    raise CheckpointError(
        f"{len(broken)} tensors of {name} do not fit the type that they were to have and became "
        f"infinite: {listed(map(quote, sorted(broken)))}; convert with --dtype bfloat16"
    )


def check_logits(
    expected: mx.array | None, network: nn.Module, quantization: Quantization | None, name: str
) -> None:
    """Refuse a result that answers otherwise than its source, beyond what rounding explains.

    Args:
        expected: logits [L, V] of the source; None where it cannot be run, nor what it became.
        network: the result.
        quantization: of the result.
        name: of the source.

    Raises:
        CheckpointError: saying by how much.
    """
    if expected is None:
        return
    worst = _difference(expected, _forward(network))
    limit: Any = ROUNDING
    if quantization is not None:
        limit = QUANTIZATION.get(quantization.bits, float("inf"))
    if not worst <= limit:
        raise CheckpointError(
            f"converted, {name} would answer otherwise: its logits for {N_TOKENS} tokens differ "
            f"by {worst:.2g} of their spread, and at most {limit:.2g} is rounding"
        )


def _difference(expected: mx.array, found: mx.array) -> float:
    """Return the root mean square of the difference, in units of the logits' spread."""
    scale = mx.sqrt(mx.mean((expected - expected.mean(axis=-1, keepdims=True)) ** 2))
    return float(mx.sqrt(mx.mean((found - expected) ** 2)) / scale)
