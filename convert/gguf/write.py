"""Weights written to safetensors, a few at a time, so that memory holds no more than a part."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.convert.gguf.formats import GROUP
from mlx_eagle.convert.gguf.source_weights import Weight
from mlx_eagle.convert.gguf.weights import convert_weight
from mlx_eagle.files.quoting import one_line
from mlx_eagle.target.stage import shard_name

MAX_SHARD_BYTES = 1 << 30
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
Progress = Callable[[int, int], None]


class Row(NamedTuple):
    """What became of a tensor.

    Attributes:
        name: in the GGUF file.
        place: in MLX.
        kind: how the file stores it, in ggml's words.
        became: how it is stored now, such as "4 bits" or "float16".
        bits: of quantized values; None for others.
        error: root mean square of what was changed, in units of that of the values; 0: nothing.
    """

    name: str
    place: str
    kind: str
    became: str
    bits: int | None
    error: float


def write_weights(
    weights: Sequence[Weight], folder: Path, dtype: mx.Dtype, progress: Progress
) -> list[Row]:
    """Write weights and return what became of each.

    Args:
        weights: in the order in which they are to be written.
        folder: to write to.
        dtype: of scales, offsets and values that are not quantized.
        progress: called with bytes of the GGUF file that are done, and all.

    Raises:
        CheckpointError: if values are no finite numbers, or of a kind that cannot be read.
        OSError: if they cannot be written.
    """
    parts = list(_parts(weights, dtype))
    total = sum(weight.tensor.n_bytes for weight in weights)
    rows: list[Row] = []
    places: dict[str, str] = {}
    done = 0
    for number, part in enumerate(parts, start=1):
        file = WHOLE if len(parts) == 1 else shard_name(number, len(parts))
        arrays: dict[str, mx.array] = {}
        for weight in part:
            converted = convert_weight(weight, dtype)
            arrays |= converted.arrays
            rows.append(_row(weight, converted.bits, converted.error, dtype))
            done += weight.tensor.n_bytes
            progress(done, total)
        _save(folder / file, arrays)
        places |= dict.fromkeys(arrays, file)
    if len(parts) > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=1))
    return rows


def _save(file: Path, arrays: dict[str, mx.array]) -> None:
    """Write a file, on a disk that may be full."""
    try:
        mx.save_safetensors(str(file), arrays, metadata={"format": "mlx"})
    except RuntimeError as error:  # MLX has no other
        raise OSError(one_line(error)) from error


def quantization_of(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return what config.json says of quantized modules, each by its name; None without any."""
    bits = {row.place.removesuffix(".weight"): row.bits for row in rows if row.bits is not None}
    if not bits:
        return None
    ((usual, _),) = Counter(bits.values()).most_common(1)
    each = {name: {"group_size": GROUP, "bits": n, "mode": "affine"} for name, n in bits.items()}
    return {"group_size": GROUP, "bits": usual, "mode": "affine", **each}


def _row(weight: Weight, bits: int | None, error: float, dtype: mx.Dtype) -> Row:
    """Return what became of a weight."""
    became = str(dtype).removeprefix("mlx.core.") if bits is None else f"{bits} bits"
    tensor = weight.tensor
    return Row(tensor.name, weight.place, tensor.kind.name, became, bits, error)


def _planned_bytes(weight: Weight, dtype: mx.Dtype) -> int:
    """Return how many bytes a weight will take."""
    n_values = math.prod(weight.tensor.shape)
    if weight.bits is None:
        return int(n_values * dtype.size)
    return int(n_values * weight.bits // 8 + 2 * n_values // GROUP * dtype.size)


def _parts(weights: Sequence[Weight], dtype: mx.Dtype) -> Iterator[list[Weight]]:
    """Yield weights in parts, each of which becomes a file."""
    part: list[Weight] = []
    n_bytes = 0
    for weight in weights:
        size = _planned_bytes(weight, dtype)
        if part and n_bytes + size > MAX_SHARD_BYTES:
            yield part
            part, n_bytes = [], 0
        part.append(weight)
        n_bytes += size
    if part:
        yield part
