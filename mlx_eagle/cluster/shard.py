"""One rank's part of a target, by mlx-lm's own `shard()`: what can be divided, and its reading.

Attention heads and the inner rows of MLPs or experts are divided; embedding, norms, routers and,
for most families, the output layer are whole on every rank. What does not divide evenly is refused
before a weight is read. As a pipeline (`stage.py`) layers are dealt out instead.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import _get_classes

from mlx_eagle.cluster.forward_end import ForwardEnd
from mlx_eagle.cluster.stage import TRIED as STAGED
from mlx_eagle.cluster.stage import (
    Stage,
    arrays_of,
    check_stages,
    make_stage,
    parts_to_read,
    staging_module,
)
from mlx_eagle.errors import CheckpointError, EagleError, UnsupportedTargetError
from mlx_eagle.files.json_files import language_config, read_json
from mlx_eagle.files.quoting import listed, one_line
from mlx_eagle.load_options import PIPELINE, TENSOR
from mlx_eagle.target.load import LoadedTarget, load_network
from mlx_eagle.target.target import output_layer

# Sizes that are divided, by their names in config.json; those of inputs hold whole groups of
# quantized numbers.
HEADS = ("num_attention_heads", "num_key_value_heads")
INNER = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
BY_INPUT = ("o_proj", "out_proj", "down_proj")  # layers whose inputs are divided
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
        has_whole_output: whether rank 0 has the whole output layer.
        nbytes: of the weights on this rank.
        stage: which layers it has; None where it has a part of every layer.
    """

    loaded: LoadedTarget
    end: ForwardEnd
    has_whole_output: bool
    nbytes: int
    stage: Stage | None = None


class PeakMemory:
    """The most bytes that MLX has in use from now on, beside what is in use now."""

    def __init__(self) -> None:
        mx.clear_cache()
        self._before = mx.get_active_memory()
        mx.reset_peak_memory()

    @property
    def nbytes(self) -> int:
        """So far."""
        return max(mx.get_peak_memory() - self._before, 0)


def check_divisible(folder: Path, n_ranks: int, parallel: str = TENSOR) -> None:
    """Refuse a target that cannot be divided among so many ranks; no weight is read.

    Args:
        folder: the target.
        n_ranks: how many there are.
        parallel: of `LoadOptions`.

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
    is_tried = divide is not None and divide.__module__.rpartition(".")[2] in TRIED
    if parallel == PIPELINE:
        instead = f"leave out parallel={PIPELINE}" if is_tried else "load it on one machine"
        check_stages(model_class, config, n_ranks, instead)
        return
    if divide is None:
        raise UnsupportedTargetError(
            f"mlx-lm cannot divide models of the kind {kind} among hosts; {_instead(model_class)}"
        )
    if not is_tried:
        raise UnsupportedTargetError(
            f"models of the kind {kind} were not tried on several hosts yet, and might answer "
            f"otherwise there; {_instead(model_class)}"
        )
    wrong = _undivided(config, n_ranks)
    if wrong:
        raise UnsupportedTargetError(
            f"{folder.name} cannot be divided among {n_ranks} hosts: {listed(wrong)}; {ADVICE}"
        )


def _instead(model_class: type) -> str:
    """Return what would do where layers are not divided."""
    is_staged = staging_module(model_class) in STAGED
    return f"ask for parallel={PIPELINE}" if is_staged else "load it on one machine"


def _undivided(config: dict[str, Any], n_ranks: int) -> list[str]:
    """Return which sizes do not divide, in words."""
    facts = language_config(config)
    sizes = {name: facts.get(name) for name in (*HEADS, *INNER)}
    counts = {name: size for name, size in sizes.items() if type(size) is int and size > 0}
    if config.get("model_type") in REPEATED:
        keys = counts.get("num_key_value_heads", n_ranks)
        if keys < n_ranks and n_ranks % keys == 0:
            counts.pop("num_key_value_heads")
    wrong = [f"{name} is {size}" for name, size in counts.items() if size % n_ranks]
    quantization = config.get("quantization")
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
    dtype: mx.Dtype | None = None,
    max_context: int | None = None,
    parallel: str = TENSOR,
) -> Shard:
    """Read one rank's part of a target.

    Weights are mapped, divided and only then read, a layer at a time: a rank never holds more than
    its part and one whole layer.

    Args:
        folder: the target, checked by `check_divisible`.
        group: of all ranks.
        dtype: in which all ranks compute; None keeps what is stored.
        max_context: tokens that a text may have, if the user says so.
        parallel: of `LoadOptions`.

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
    if dtype is not None:
        loaded.network.set_dtype(dtype)
    cut = _cut_groups(loaded.network, group.size())
    try:
        return (_staged if parallel == PIPELINE else _sharded)(loaded, group)
    except (AttributeError, ValueError, TypeError, AssertionError) as error:  # of mlx or mlx-lm
        reason = f"groups would be cut in {listed(cut)}: " if cut else ""
        raise UnsupportedTargetError(
            f"{folder.name} cannot be divided among {group.size()} hosts "
            f"({reason}{one_line(error) or type(error).__name__}); {ADVICE}"
        ) from error
    except RuntimeError as error:  # of mlx: no memory, or a file that ends early
        raise CheckpointError(
            f"the weights of {folder.name} cannot be read here: {one_line(error)}"
        ) from error


def _cut_groups(network: nn.Module, n_ranks: int) -> list[str]:
    """Return layers, divided by their input, whose groups of quantized numbers do not divide.

    Each may have a size of groups of its own; what is cut is refused when it is divided.
    """
    return [
        name
        for name, module in network.named_modules()
        if name.endswith(BY_INPUT) and "scales" in module and module.scales.shape[-1] % n_ranks
    ]


def _sharded(loaded: LoadedTarget, group: mx.distributed.Group) -> Shard:
    """Return a part of every layer, read."""
    network = loaded.network
    before = output_layer(network, None)
    network.shard(group)
    has_whole_output = output_layer(network, None) is before
    weights = arrays_of(network)
    _read(network, weights)
    end = ForwardEnd(network.layers[-1], group, needs_logits=not has_whole_output)
    return Shard(loaded, end, has_whole_output, sum(array.nbytes for array in weights))


def _staged(loaded: LoadedTarget, group: mx.distributed.Group) -> Shard:
    """Return some of the layers, read."""
    stage, end = make_stage(loaded.network, group)
    weights = parts_to_read(loaded.network, stage)
    _read(loaded.network, weights)
    return Shard(loaded, end, True, sum(array.nbytes for array in weights), stage)


def _read(network: nn.Module, weights: list[mx.array]) -> None:
    """Read weights, a layer at a time."""
    for layer in network.layers:
        mx.eval(layer.parameters())
        mx.clear_cache()
    mx.eval(weights)
