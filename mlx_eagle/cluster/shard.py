"""One rank's part of a target, by mlx-lm's own `shard()`: what can be divided, and its reading.

Attention heads and the inner rows of MLPs or experts are divided; embedding, norms, routers and,
for most families, the output layer are whole on every rank. What does not divide evenly is refused
before a weight is read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from mlx_eagle.cluster.forward_end import ForwardEnd
from mlx_eagle.errors import EagleError, UnsupportedTargetError
from mlx_eagle.files.json_files import language_config, read_json
from mlx_eagle.files.quoting import listed, one_line
from mlx_eagle.target.load import LoadedTarget, compute_type, load_network
from mlx_eagle.target.target import output_layer

# Sizes that are divided, by their names in config.json; those of inputs hold whole groups of
# quantized numbers.
HEADS = ("num_attention_heads", "num_key_value_heads")
INNER = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
REPEATED = ("qwen3_5", "qwen3_5_moe")  # families that repeat keys where there are more ranks
# mlx-lm's modules whose `shard()` was tried, two ranks against one: tests/cluster/test_families.py.
TRIED = frozenset(
    (
        *("deepseek_v3", "deepseek_v32", "gpt_oss", "kimi_k3", "llama", "longcat_flash"),
        *("longcat_flash_ngram", "minimax_m3_vl", "ministral3", "qwen2", "qwen3", "qwen3_5"),
        "qwen3_moe",
    )
)
ADVICE = "use another number of hosts"


class Shard(NamedTuple):
    """One rank's part of a target.

    Attributes:
        loaded: the model, its layers divided, and what its files say.
        end: where its forward passes end.
        has_whole_output: whether the output layer is whole on every rank.
        nbytes: of the weights on this rank.
    """

    loaded: LoadedTarget
    end: ForwardEnd
    has_whole_output: bool
    nbytes: int


def check_divisible(folder: Path, n_ranks: int) -> None:
    """Refuse a target that cannot be divided among so many ranks; no weight is read.

    Raises:
        UnsupportedTargetError: saying what does not divide.
        CheckpointError: if config.json cannot be read.
    """
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    try:
        model_class, _ = _get_classes(config)
    except Exception as error:  # mlx-lm raises whatever its modules raise
        raise UnsupportedTargetError(f"mlx-lm has no model {kind!r}: {one_line(error)}") from error
    divide = getattr(model_class, "shard", None)
    if divide is None:
        raise UnsupportedTargetError(
            f"mlx-lm cannot divide models of the kind {kind} among hosts; load it on one machine"
        )
    if divide.__module__.rpartition(".")[2] not in TRIED:
        raise UnsupportedTargetError(
            f"models of the kind {kind} were not tried on several hosts yet, and might answer "
            "otherwise there; load it on one machine"
        )
    wrong = _undivided(config, n_ranks)
    if wrong:
        raise UnsupportedTargetError(
            f"{folder.name} cannot be divided among {n_ranks} hosts: {listed(wrong)}; {ADVICE}"
        )


def _undivided(config: dict[str, Any], n_ranks: int) -> list[str]:
    """Return which sizes do not divide, in words."""
    facts, quantization = language_config(config), config.get("quantization")
    sizes = {name: facts.get(name) for name in (*HEADS, *INNER)}
    counts = {name: size for name, size in sizes.items() if type(size) is int and size > 0}
    if config.get("model_type") in REPEATED:
        keys = counts.get("num_key_value_heads", n_ranks)
        if keys < n_ranks and n_ranks % keys == 0:
            counts.pop("num_key_value_heads")
    wrong = [f"{name} is {size}" for name, size in counts.items() if size % n_ranks]
    group = quantization.get("group_size") if isinstance(quantization, Mapping) else None
    if type(group) is int and group > 0 and not wrong:
        wrong += [
            f"{name} is {size}, of which each would have {size // n_ranks}, no multiple of the "
            f"{group} numbers that share a scale"
            for name, size in counts.items()
            if name in INNER and (size // n_ranks) % group
        ]
    return wrong


def load_shard(
    folder: Path,
    group: mx.distributed.Group,
    dtype: str | None = None,
    max_context: int | None = None,
) -> Shard:
    """Read one rank's part of a target.

    Weights are mapped, divided and only then read, a layer at a time: a rank never holds more than
    its part and one whole layer.

    Args:
        folder: the target, checked by `check_divisible`.
        group: of all ranks.
        dtype: of `LoadOptions`.
        max_context: tokens that a text may have, if the user says so.

    Raises:
        EagleError: if it cannot be loaded or divided.
    """
    try:
        loaded = load_network(folder, max_context)
    except EagleError:
        raise
    except Exception as error:  # mlx-lm has no error type
        raise UnsupportedTargetError(
            f"{folder} is not a target that mlx-lm can load ({one_line(error)})"
        ) from error
    network, kind = loaded.network, compute_type(dtype)
    if kind is not None:
        network.set_dtype(kind)
    before = output_layer(network, None)
    divide: Callable[[Any], None] = network.shard
    try:
        divide(group)
    except Exception as error:  # mlx and mlx-lm raise ValueError, assert, ...
        raise UnsupportedTargetError(
            f"{folder.name} cannot be divided among {group.size()} hosts "
            f"({one_line(error) or type(error).__name__}); {ADVICE}"
        ) from error
    has_whole_output = output_layer(network, None) is before
    _read(network)
    end = ForwardEnd(network, group, needs_logits=not has_whole_output)
    nbytes = sum(array.nbytes for array in dict(tree_flatten(network.parameters())).values())
    return Shard(loaded, end, has_whole_output, nbytes)


def _read(network: nn.Module) -> None:
    """Read the weights, a layer at a time."""
    for layer in network.layers:
        mx.eval(layer.parameters())
        mx.clear_cache()
    mx.eval(network.parameters())
