"""What each tensor of a GGUF file is called in MLX; one that has no place there is an error."""

import re
from collections.abc import Mapping

from mlx_eagle.convert.gguf.families import Family
from mlx_eagle.convert.gguf.reader import GGUF
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import listed, quote

EMBEDDING = "token_embd.weight"
OUTPUT = "output.weight"
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
# They become facts of the configuration, or are computed from it.
_FACTS = (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)
_COMPUTED = re.compile(r"blk\.\d+\.attn_rot_embd\.weight")

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(\w+)\.(weight|bias)")


def name_tensors(gguf: GGUF, family: Family, n_layers: int) -> Mapping[str, str]:
    """Return the names of tensors in MLX, by their names in the file.

    Args:
        gguf: the file.
        family: which it is of.
        n_layers: how many layers its metadata announces.

    Raises:
        CheckpointError: naming tensors that have no place in the model, or that it lacks.
    """
    named = {name: _place(name, family, n_layers) for name in gguf.tensors if not _is_fact(name)}
    unknown = [quote(name) for name, place in named.items() if place is None]
    if unknown:
        raise CheckpointError(
            f"{gguf.name} has tensors that have no place in mlx-lm's {family.model_type}: "
            f"{listed(unknown)}"
        )
    places = {name: place for name, place in named.items() if place is not None}
    _check_complete(gguf, family, n_layers)
    return places


def _is_fact(name: str) -> bool:
    """Say whether a tensor becomes no weight."""
    return name in _FACTS or _COMPUTED.fullmatch(name) is not None


def _place(name: str, family: Family, n_layers: int) -> str | None:
    """Return the name of a tensor in MLX; None if it has no place there."""
    stem, _, ending = name.rpartition(".")
    if stem in _OUTSIDE and ending == "weight" and not (family.tied and name == OUTPUT):
        return f"{_OUTSIDE[stem]}.{ending}"
    found = _LAYER.fullmatch(name)
    if found is None or int(found[1]) >= n_layers or found[2] not in family.layer:
        return None
    return f"model.layers.{found[1]}.{family.layer[found[2]]}.{found[3]}"


def _check_complete(gguf: GGUF, family: Family, n_layers: int) -> None:
    """Refuse a file that lacks a tensor; what is left over was refused before."""
    needed = [EMBEDDING, "output_norm.weight"]
    needed += [f"blk.{layer}.{name}.weight" for layer in range(n_layers) for name in family.layer]
    missing = [name for name in needed if name not in gguf.tensors]
    if missing:
        raise CheckpointError(
            f"{gguf.name} lacks {len(missing)} tensors of a {family.model_type} with {n_layers} "
            f"layers: {listed(missing)}"
        )
