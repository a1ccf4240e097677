"""A decoder layer of the class that mlx-lm has for a target, for heads that are such a layer.

A multi-token prediction layer of a mixture of experts, or with latent attention, is one more layer
of its target. It is built from the target's configuration, which the head's files hold, so a head
is read without its target.
"""

from typing import Any

import mlx.nn as nn
from mlx_lm.utils import _get_classes

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import language_config
from mlx_eagle.files.quoting import quote_value
from mlx_eagle.target.lift import lift
from mlx_eagle.target.positions import accept_node_positions, is_rope
from mlx_eagle.target.ropes import rotate_as_announced

# Targets whose layer has been compared with its definition; others are refused.
FAMILIES = ("qwen3_5", "qwen3_5_moe", "qwen3_next", "glm4_moe", "glm4_moe_lite")


def build_target_block(config: dict[str, Any]) -> nn.Module:
    """Return the last layer with full attention of a target, with random weights.

    Nothing is computed for the other layers, whose weights are never asked for.

    Args:
        config: of the target, with a `model_type` that mlx-lm knows.

    Raises:
        CheckpointError: if the family is not one of those known, or its class cannot read it.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"multi-token prediction layers of {quote_value(model_type)} are not supported, only "
            f"those of {', '.join(FAMILIES)}"
        )
    facts = lift(config, set())
    model_class, args_class = _get_classes({"model_type": model_type})
    try:
        network = model_class(args_class.from_dict(facts))
    except (TypeError, ValueError, LookupError, ArithmeticError) as error:
        raise CheckpointError(
            f"mlx-lm's {model_type} cannot be built from the configuration of the head's target: "
            f"{type(error).__name__}: {error}"
        ) from error
    rotate_as_announced(network, language_config(facts), None)
    full = [layer for layer in network.layers if "self_attn" in layer]
    if not full:
        raise CheckpointError(f"the target of the head, a {model_type}, has no full attention")
    block: nn.Module = full[-1]
    for _, module in block.named_modules():
        if is_rope(module):
            accept_node_positions(module)
    return block
