"""A head before its first update: its configuration, from the target's sizes, and first weights."""

from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig, MedusaConfig, problems
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import Head
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.target.context_length import model_context_length
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import HeadOptions

EAGLE_LENGTH = 2048  # positions of EAGLE's own heads: a head is never said to have fewer
MOST_POSITIONS = 1 << 20  # some targets state a number that no text reaches
HEAD_DIMS = (128, 64)  # widths of a head that engines' kernels are made for
FROZEN = ("draft_to_target", "mask_hidden")  # arrays of a head that are no weights


class TargetSizes(NamedTuple):
    """What a new head takes over from its target.

    Attributes:
        hidden_size: D.
        vocab_size: V, rows of the embedding.
        num_hidden_layers: n; boundary n + 1 is what the final norm gives.
        config: the target's configuration of its language model, for widths and rope.
    """

    hidden_size: int
    vocab_size: int
    num_hidden_layers: int
    config: dict[str, Any]


def head_taps(options: HeadOptions, n_layers: int) -> tuple[int, ...]:
    """Return the boundaries that a head reads: those asked for, or those of the paper's code.

    Raises:
        EagleError: if the target has no such boundary.
    """
    if options.algorithm != "eagle3":
        if options.taps:
            raise EagleError(f"{options.algorithm} heads read the final state: leave out the taps")
        return (n_layers + 1,)
    taps = options.taps or tuple(sorted({min(2, n_layers), n_layers // 2, max(n_layers - 3, 0)}))
    if list(taps) != sorted(set(taps)) or not 0 <= taps[0] <= taps[-1] <= n_layers + 1:
        raise EagleError(
            f"the taps are {', '.join(map(str, taps))}; give boundaries from 0 to {n_layers + 1}, "
            "ascending"
        )
    return taps


def make_head(
    options: HeadOptions,
    sizes: TargetSizes,
    draft_ids: mx.array,
    teacher: Teacher,
    *,
    length: int = EAGLE_LENGTH,
) -> Head:
    """Return a head with its first weights; random ones follow `mx.random`'s state.

    Its output layer begins as the target's rows for the draft vocabulary.

    Args:
        options: what kind of head it is.
        sizes: of the target.
        draft_ids: [W] int32, ascending: the tokens that it can propose.
        teacher: the target's layers.
        length: tokens of the longest text that it is trained on.

    Raises:
        EagleError: if a head cannot have these sizes.
    """
    if options.algorithm == "medusa":
        return _make_medusa(options, sizes, teacher)
    values = _eagle_values(options, sizes, draft_ids.size)
    values["max_position_embeddings"] = _n_positions(sizes.config, length)
    if wrong := problems(HeadConfig, values):
        raise EagleError(f"a head cannot be made for this target: {', '.join(wrong)}")
    head = EagleHead(HeadConfig(**values))
    head.draft_to_target = draft_ids.astype(mx.int32)
    if head.config.own_lm_head:
        head.lm_head.weight = teacher.weight(draft_ids).astype(mx.float32)
    return head


def unfreeze_weights(head: Head) -> None:
    """Let every weight of a head be trained; tables are none."""
    head.unfreeze()
    head.freeze(recurse=False, keys=[name for name in FROZEN if name in head])


def _eagle_values(options: HeadOptions, sizes: TargetSizes, n_draft: int) -> dict[str, Any]:
    """Return the fields of a `HeadConfig`: a layer like the target's, without what is special.

    The number of positions is left to the caller.
    """
    is_eagle3, is_31 = options.algorithm == "eagle3", options.norms == "eagle3.1"
    config, hidden = sizes.config, sizes.hidden_size
    n_heads, n_kv_heads, head_dim = _attention_sizes(config, hidden)
    stated_width = _one_size(config.get("intermediate_size"))
    return {
        "algorithm": "eagle3" if is_eagle3 else "eagle",
        "hidden_size": hidden,
        "target_hidden_size": hidden,
        "target_vocab_size": sizes.vocab_size,
        "draft_vocab_size": n_draft,
        "intermediate_size": options.intermediate or stated_width or 4 * hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": _number(config.get("rms_norm_eps")) or 1e-5,
        "rope_theta": _rope_base(config),
        "rope_scaling": None,
        "rope_interleaved": False,
        "rope_dims": head_dim,
        "sliding_windows": (options.window,) * options.layers,
        "taps": head_taps(options, sizes.num_hidden_layers),
        "fuse_taps": is_eagle3,
        "norm_before_fc": False,
        "fc_norm": is_eagle3 and is_31,
        "input_layernorm": is_eagle3,
        "hidden_norm": is_eagle3,
        "double_norm": False,
        "norm_before_residual": False,
        "norm_output": is_eagle3 and is_31,
        "final_norm": is_eagle3,
        "qk_norm": False,
        "attention_bias": False,
        "attention_output_bias": False,
        "mlp_bias": False,
        "fc_bias": False,
        "own_embedding": False,
        "own_lm_head": is_eagle3,
        "mask_token_id": None,
    }


def _attention_sizes(config: dict[str, Any], hidden: int) -> tuple[int, int, int]:
    """Return how many heads attention has, how many of keys and values, and how wide one is.

    They are the target's where it has one number for all layers. Other targets attend in ways that
    a head does not: its sizes then follow from its width alone.
    """
    stated = ("num_attention_heads", "num_key_value_heads", "head_dim")
    n_heads, n_kv_heads, head_dim = (_one_size(config.get(name)) for name in stated)
    is_latent = config.get("kv_lora_rank") is not None  # its heads share a compressed state
    if is_latent or n_heads is None or (head_dim is None and hidden % n_heads):
        head_dim = next((size for size in HEAD_DIMS if hidden % size == 0), hidden)
        n_heads = hidden // head_dim
        return n_heads, _groups(n_heads), head_dim
    if config.get("num_key_value_heads") is None:
        n_kv_heads = n_heads
    return n_heads, n_kv_heads or _groups(n_heads), head_dim or hidden // n_heads


def _groups(n_heads: int) -> int:
    """Return the most heads of keys and values, up to eight, that share the queries equally."""
    return max(n for n in range(1, 9) if n_heads % n == 0)


def _one_size(stated: object) -> int | None:
    """Return a size that is a number, or the same one for every layer; None for all others."""
    if isinstance(stated, list) and stated and all(size == stated[0] for size in stated):
        stated = stated[0]
    return stated if type(stated) is int and stated > 0 else None


def _number(stated: object) -> float | None:
    """Return a number, or None for what is none: a list by layers, for example."""
    return float(stated) if isinstance(stated, int | float) else None


def _n_positions(config: dict[str, Any], length: int) -> int:
    """Return for how many positions a head is: as many as its target has, or it was trained on.

    Engines make tables of rope's angles that long, and fail or stop drafting after their end.
    """
    stated = min(model_context_length(config) or 0, MOST_POSITIONS)
    return max(stated, length, EAGLE_LENGTH)


def _rope_base(config: dict[str, Any]) -> float:
    """Return the target's rope base; 10000 where it names none, or one for each kind of layer."""
    rope = config.get("rope_parameters")
    nested = rope.get("rope_theta") if isinstance(rope, dict) else None
    return _number(config.get("rope_theta")) or _number(nested) or 10000.0


def _make_medusa(options: HeadOptions, sizes: TargetSizes, teacher: Teacher) -> Head:
    """Return Medusa heads whose first proposal is what the target's own output layer gives."""
    config = MedusaConfig(
        algorithm="medusa",
        hidden_size=sizes.hidden_size,
        target_hidden_size=sizes.hidden_size,
        target_vocab_size=sizes.vocab_size,
        draft_vocab_size=sizes.vocab_size,
        num_heads=options.layers,
        num_layers=1,
        block_bias=True,
        own_lm_heads=True,
        taps=head_taps(options, sizes.num_hidden_layers),
    )
    head = MedusaHead(config)
    everything = mx.arange(sizes.vocab_size, dtype=mx.int32)
    for depth in head.depths:
        depth.lm_head.weight = teacher.weight(everything).astype(mx.float32)
        for block in depth.blocks:
            block.linear.weight = mx.zeros_like(block.linear.weight)
            block.linear.bias = mx.zeros_like(block.linear.bias)
    return head
