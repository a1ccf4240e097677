"""The tensors of a multi-token prediction layer as parameters of `MtpHead`.

Experts that lie one by one, or fused, are stacked as mlx-lm's classes have them, latent attention
is split as there, FP8 blocks become bfloat16. What is quantized for MLX stays as it is.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.convert.checkpoint import read_weights, require_finite
from mlx_eagle.convert.facts import Fact
from mlx_eagle.convert.mtp.layouts import head_names
from mlx_eagle.convert.mtp.norms import FACT, with_sums
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.folders import find_weights
from mlx_eagle.files.json_files import language_config, read_count, read_json
from mlx_eagle.files.quoting import listed, quote

_EXPERT = re.compile(r"(.*\.mlp)\.experts\.(\d+)\.(\w+)\.(weight|scales|biases)")
_FUSED = re.compile(r"(.*\.mlp)\.experts\.(gate_up_proj|down_proj)(\.weight)?")
_FP8_BLOCK = 128  # rows and columns that share a scale
MAX_EXPERTS = 4096

Tensors = dict[str, mx.array]


class MtpWeights(NamedTuple):
    """The parameters of a layer, and how they are quantized; None where they are not."""

    tensors: Tensors
    quantization: dict[str, Any] | None


def read_mtp_weights(source: Path, facts: dict[str, Fact]) -> MtpWeights:
    """Read a layer from its folder.

    Args:
        source: of the layer alone, as published or as `extract.py` writes it.
        facts: of `resolve_mtp_facts`.

    Raises:
        CheckpointError: if tensors are malformed, or quantized in a way that is not read.
    """
    config = read_json(source / "config.json")
    published: Tensors = {}
    for file in find_weights(source):
        published |= read_weights(file)
    names = head_names(published, config)
    tensors = {ours: published[name] for name, ours in names.items()}
    tensors = _stacked(_unfused(_without_fp8(tensors)))
    if any("kv_b_proj" in name for name in tensors):
        tensors = _split_latent(tensors, language_config(config))
    tensors = with_sums(tensors, facts[FACT].value)
    require_finite({name: a for name, a in tensors.items() if mx.issubdtype(a.dtype, mx.floating)})
    paths = {ours: name for name, ours in names.items()}
    return MtpWeights(tensors, _quantization(tensors, config, paths))


def _without_fp8(tensors: Tensors) -> Tensors:
    """Return tensors in which FP8 blocks are multiplied by their scales, in bfloat16."""
    found = {n: a for n, a in tensors.items() if not n.endswith(".weight_scale_inv")}
    for name in set(tensors) - set(found):
        weight = name.removesuffix("_scale_inv")
        if weight not in found:
            raise CheckpointError(f"{quote(name)} is the scale of a tensor that is not there")
        found[weight] = _from_fp8(found[weight], tensors[name])
    return found


def _from_fp8(weight: mx.array, scale: mx.array) -> mx.array:
    """Return [.., O, I] in bfloat16 for FP8 weights and a scale for each block of 128 x 128."""
    rows, columns = weight.shape[-2:]
    scales = mx.repeat(mx.repeat(scale, _FP8_BLOCK, axis=-2), _FP8_BLOCK, axis=-1)
    numbers = mx.from_fp8(weight, dtype=mx.float32) * scales[..., :rows, :columns]
    return numbers.astype(mx.bfloat16)


def _unfused(tensors: Tensors) -> Tensors:
    """Return tensors in which fused experts [E, 2 * I, D] are gate and up, as mlx-lm has them."""
    found: Tensors = {}
    for name, array in tensors.items():
        match = _FUSED.fullmatch(name)
        if match is None:
            found[name] = array
        elif match[2] == "down_proj":
            found[f"{match[1]}.switch_mlp.down_proj.weight"] = array
        else:
            gate, up = mx.split(array, 2, axis=-2)
            found[f"{match[1]}.switch_mlp.gate_proj.weight"] = gate
            found[f"{match[1]}.switch_mlp.up_proj.weight"] = up
    return found


def _stacked(tensors: Tensors) -> Tensors:
    """Return tensors in which experts that lie one by one are stacked: [E, O, I]."""
    experts: dict[str, dict[int, mx.array]] = {}
    found: Tensors = {}
    for name, array in tensors.items():
        if match := _EXPERT.fullmatch(name):
            stack = f"{match[1]}.switch_mlp.{match[3]}.{match[4]}"
            experts.setdefault(stack, {})[int(match[2])] = array
        else:
            found[name] = array
    for stack, parts in experts.items():
        if sorted(parts) != list(range(len(parts))) or len(parts) > MAX_EXPERTS:
            raise CheckpointError(f"the experts of {stack} are not numbered 0, 1, 2, ...")
        found[stack] = mx.stack([parts[i] for i in range(len(parts))])
    return found


def _split_latent(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Return tensors in which the latent's projection is one for keys and one for values.

    mlx-lm multiplies queries by the keys' part instead of keys, and outputs by the values'.
    """
    n_heads = read_count(config, "num_attention_heads")
    n_keys = read_count(config, "qk_nope_head_dim")
    found = dict(tensors)
    for name in [n for n in tensors if n.endswith(".kv_b_proj.weight")]:
        prefix = name.removesuffix("kv_b_proj.weight")
        if f"{prefix}kv_b_proj.scales" in tensors:
            raise CheckpointError(f"{quote(name)} is quantized as a whole, which is not read")
        parts = found.pop(name)
        if parts.shape[0] % n_heads:
            raise CheckpointError(f"{quote(name)} has {parts.shape[0]} rows for {n_heads} heads")
        parts = parts.reshape(n_heads, -1, parts.shape[-1])
        found[f"{prefix}embed_q.weight"] = parts[:, :n_keys].swapaxes(-1, -2)
        found[f"{prefix}unembed_out.weight"] = parts[:, n_keys:]
    return found


def _quantization(
    tensors: Tensors, config: dict[str, Any], paths: dict[str, str]
) -> dict[str, Any] | None:
    """Return how layers are quantized already, by our names; None where none is.

    Raises:
        CheckpointError: if the configuration does not say how, or it is a foreign way.
    """
    scaled = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    settings = config.get("quantization")
    if not scaled:
        packed = [quote(n) for n, a in tensors.items() if a.dtype in (mx.uint8, mx.uint32)]
        if packed or any(name.endswith("_scale") for name in tensors):
            raise CheckpointError(
                f"{listed(packed) or 'the weights'} are quantized in a way that MLX cannot read; "
                "use the publisher's 16-bit checkpoint"
            )
        return None
    if not isinstance(settings, dict):
        raise CheckpointError("config.json: weights are quantized, and `quantization` is missing")
    found: dict[str, Any] = {"group_size": settings.get("group_size"), "bits": settings.get("bits")}
    for path in scaled:
        published = paths.get(f"{path}.weight", path).removesuffix(".weight")
        own = settings.get(published)
        own = own if isinstance(own, dict) else {}
        found[path] = {
            key: own.get(key, settings.get(key, default))
            for key, default in (("group_size", 64), ("bits", 4), ("mode", "affine"))
        }
    return found
