"""How a GGUF file says that queries and keys are rotated, in the words of a config.json.

Llama 3.1 stands in a file as a divisor per pair of dimensions (`rope_freqs`), LongRoPE as two
(`rope_factors_short`, `rope_factors_long`); all others as keys `rope.scaling.*`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlx_eagle.convert.gguf.metadata import Metadata
from mlx_eagle.convert.gguf.names import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from mlx_eagle.convert.gguf.reader import GGUF
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote
from mlx_eagle.target.rotation import announced_rotation

TOLERANCE = 1e-4  # of a factor: 32 bits, and formulas written another way
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
_TRAINED = 8192  # tokens of the training's texts, of every Llama 3.1 to 3.3


def rope_facts(gguf: GGUF, metadata: Metadata, head_dim: int) -> dict[str, Any]:
    """Return `rope_theta`, and what else config.json says of a rope.

    Args:
        gguf: the file, for the factors that are tensors.
        metadata: of its architecture.
        head_dim: dimensions of a head.

    Raises:
        CheckpointError: if it rotates in a way that is not known.
    """
    facts: dict[str, Any] = {"rope_theta": metadata.number("rope.freq_base", 10000.0)}
    n_dims = metadata.count("rope.dimension_count", head_dim)
    if n_dims != head_dim:
        if metadata.prefix != "phi3" or n_dims > head_dim:
            raise CheckpointError(
                f"{gguf.name} rotates {n_dims} of {head_dim} dimensions of a head"
            )
        facts["partial_rotary_factor"] = n_dims / head_dim
    if LONG_FACTORS in gguf.tensors or SHORT_FACTORS in gguf.tensors:
        return facts | _longrope(gguf, metadata, n_dims)
    if ROPE_FACTORS in gguf.tensors:
        return facts | _llama3(gguf, metadata, facts, head_dim)
    scaling = _scaling(metadata)
    return facts | ({"rope_scaling": scaling} if scaling else {})


def _scaling(metadata: Metadata) -> dict[str, Any]:
    """Return what the keys of the metadata say of scaling; empty for none."""
    kind = metadata.text(f"{metadata.prefix}.rope.scaling.type", "")
    if metadata.has("rope.scale_linear") and not kind:  # files of 2023
        return _named("linear", factor=metadata.number("rope.scale_linear"))
    if kind in ("", "none"):
        return {}
    factor = metadata.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return _named(kind, factor=factor)
    if kind != "yarn":
        raise CheckpointError(f"its rope is scaled as {quote(kind)}, which is not known")
    trained = metadata.count(
        "rope.scaling.original_context_length", metadata.count("context_length")
    )
    found = _named(kind, factor=factor, original_max_position_embeddings=trained)
    for key in ("beta_fast", "beta_slow"):
        if metadata.has(f"rope.scaling.yarn_{key}"):
            found[key] = metadata.number(f"rope.scaling.yarn_{key}")
    foreign = ("yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor", "attn_factor")
    if any(metadata.number(f"rope.scaling.{key}", 1.0) != 1.0 for key in foreign):
        raise CheckpointError("its rope is scaled as yarn with factors of its own, not known here")
    return found


def _named(kind: str, **facts: Any) -> dict[str, Any]:
    """Return the facts of a scaling with its kind, under the older name of that and the newer."""
    return {"rope_type": kind, "type": kind, **facts}


def _longrope(gguf: GGUF, metadata: Metadata, n_dims: int) -> dict[str, Any]:
    """Return LongRoPE, whose factors for short and for long texts are tensors."""
    both = [_factors(gguf, name, n_dims) for name in (SHORT_FACTORS, LONG_FACTORS)]
    short, long = ([float(str(f)) for f in factors] for factors in both)
    trained = metadata.count(
        "rope.scaling.original_context_length", metadata.count("context_length")
    )
    scaling = _named("longrope", short_factor=short, long_factor=long)
    if metadata.has("rope.scaling.attn_factor"):
        scaling["attention_factor"] = metadata.number("rope.scaling.attn_factor")
    return {"rope_scaling": scaling, "original_max_position_embeddings": trained}


def _llama3(gguf: GGUF, metadata: Metadata, facts: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Return the scaling of Llama 3.1 that has just these divisors."""
    factors = _factors(gguf, ROPE_FACTORS, head_dim).astype(np.float64)
    largest = float(str(np.float32(factors.max())))
    trained = metadata.count("rope.scaling.original_context_length", _TRAINED)
    scaling = _named("llama3", factor=largest, original_max_position_embeddings=trained, **_LLAMA3)
    config = {"head_dim": head_dim, **facts, "rope_scaling": scaling}
    config["max_position_embeddings"] = metadata.count("context_length")
    rotation = announced_rotation(config, 0)
    plain = facts["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    assert rotation is not None, "a rope with a base is announced"
    if not np.allclose(plain / np.array(rotation.angles), factors, rtol=TOLERANCE, atol=0):
        raise CheckpointError(
            f"{gguf.name} has {ROPE_FACTORS}, and its divisors are not those of a Llama 3"
        )
    return {"rope_scaling": scaling}


def _factors(gguf: GGUF, name: str, n_dims: int) -> NDArray[np.float32]:
    """Return the factors of a tensor, one for each pair of dimensions."""
    tensor = gguf.tensors.get(name)
    if tensor is None or tensor.data.dtype != np.float32 or tensor.shape != (n_dims // 2,):
        raise CheckpointError(f"{gguf.name} has no {name} of {n_dims // 2} numbers")
    factors: NDArray[np.float32] = np.array(tensor.data)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise CheckpointError(f"{name} of {gguf.name} has factors that are not positive numbers")
    return factors
