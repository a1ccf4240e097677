"""The facts about a multi-token prediction layer, by the names of `MtpConfig`.

Its block is read by the rules for the other heads wherever it is a plain decoder layer. The block
of a mixture of experts, or with latent attention, is built by mlx-lm's class for the target.
"""

from collections.abc import Mapping
from typing import Any

from mlx_eagle.convert.dialects import Dialect
from mlx_eagle.convert.facts import Fact, PublishedHead
from mlx_eagle.convert.identify import Manifest
from mlx_eagle.convert.mtp.layouts import (
    LAYOUTS,
    Layout,
    family_of,
    head_names,
    is_norm,
    is_standalone,
)
from mlx_eagle.convert.mtp.norms import FACT, StoredNorms, norms_summed
from mlx_eagle.convert.rules import RULES
from mlx_eagle.convert.target_facts import TargetFacts
from mlx_eagle.convert.tensor_shapes import HeadSizes
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import language_config, read_count
from mlx_eagle.files.quoting import listed, quote
from mlx_eagle.heads.config import MtpConfig, problems

SETTABLE = ("taps", "norm_output", "hidden_first", FACT)
BY_USER = "set by the user"
# Facts of a plain block, which say nothing of a block of the target's class.
_UNUSED: dict[str, Any] = {
    **dict.fromkeys(("intermediate_size", "num_attention_heads", "num_key_value_heads"), 1),
    **dict.fromkeys(("head_dim", "rope_dims"), 2),
    **dict.fromkeys(("qk_norm", "attention_bias", "attention_output_bias", "mlp_bias"), False),
    "rope_scaling": None,
    "rope_interleaved": False,
}
# Keys of a target's configuration that its block does not need.
_OTHER_PARTS = (
    *("text_config", "vision_config", "audio_config", "quantization", "quantization_config"),
    *("architectures", "auto_map", "transformers_version"),
)
_OUTER = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
_QUERIES = "layers.0.self_attn.q_proj.weight"
SOURCE = "mtp_source"  # key under which `extract.py` notes where a layer comes from


def resolve_mtp_facts(
    config: dict[str, Any],
    manifest: Manifest,
    dialect: Dialect,
    target: TargetFacts,
    settings: Mapping[str, Any],
) -> dict[str, Fact]:
    """Return all facts about a layer.

    Args:
        config: the `config.json` beside it, its target's or its own.
        manifest: its tensors under their published names.
        dialect: that of such layers.
        target: what the target's configuration says.
        settings: facts that the user has decided, by the names in SETTABLE.

    Raises:
        CheckpointError: if it is not such a layer, or not for this target.
    """
    if unknown := sorted(set(settings) - set(SETTABLE)):
        raise CheckpointError(
            f"{unknown[0]} cannot be set for a multi-token prediction layer, only "
            f"{', '.join(SETTABLE)}"
        )
    layout = LAYOUTS[family_of(config)]
    found = {ours: manifest[name] for name, ours in head_names(manifest, config).items()}
    sizes, is_plain = read_mtp_sizes(config, manifest), _is_plain(found)
    head = PublishedHead(config, language_config(config), sizes, dialect, target)
    _check_fit(head)
    unused = {} if is_plain else _UNUSED
    rules = {
        name: Fact(unused[name], "not used: the block is the target's")
        if name in unused
        else rule(head)
        for name, rule in RULES.items()
    }
    facts = rules | _own_facts(found, config, head, is_plain) | _norms(layout, found, config)
    decided = {name: Fact(value, BY_USER) for name, value in settings.items()}
    facts |= {name: _decided(fact, facts[name]) for name, fact in decided.items()}
    values = {name: fact.value for name, fact in facts.items()}
    if wrong := problems(MtpConfig, values):
        raise CheckpointError(f"{listed(wrong)}: what config.json or --set says is impossible")
    return facts


def read_mtp_sizes(config: dict[str, Any], manifest: Manifest) -> HeadSizes:
    """Return what the shapes of a layer's tensors say.

    Raises:
        CheckpointError: if it is not whole, or there are several.
    """
    found = {ours: manifest[name] for name, ours in head_names(manifest, config).items()}
    _check_parts(found, LAYOUTS[family_of(config)])
    return _sizes(found, config, _is_plain(found))


def _is_plain(found: Manifest) -> bool:
    """Say whether the block is an ordinary decoder layer: no experts, no latent attention."""
    return not any(".mlp.gate." in name or ".kv_a_proj_with_mqa." in name for name in found)


def _decided(fact: Fact, before: Fact) -> Fact:
    """Return what the user decided; a comparison with the original tells where it comes from."""
    if isinstance(fact.value, dict) and set(fact.value) == {"summed", "origin"}:
        return Fact(fact.value["summed"], str(fact.value["origin"]))
    return fact if type(fact.value) is type(before.value) else before._replace(value=fact.value)


def _own_facts(
    found: Manifest, config: dict[str, Any], head: PublishedHead, is_plain: bool
) -> dict[str, Fact]:
    """Return the facts that no other head has, and those that are otherwise in all of these."""
    n, layout = head.target.num_hidden_layers, LAYOUTS[family_of(config)]
    order = "hidden state" if layout.hidden_first else "embedding"
    gate = is_plain and _rows(found, _QUERIES) == 2 * head.sizes.queries
    return {
        "taps": Fact([n + 1], "such layers read the target's state after its final norm"),
        "norm_output": Fact(True, "the next step reads the normed output"),
        "block": Fact("plain" if is_plain else "target", "tensors"),
        "block_config": Fact(None if is_plain else _block_config(config, found), "config.json"),
        "attention_gate": Fact(gate, "shapes of q_proj and o_proj" if is_plain else "target"),
        "hidden_first": Fact(layout.hidden_first, f"{layout.label} reads the {order} first"),
    }


def _norms(layout: Layout, found: Manifest, config: dict[str, Any]) -> dict[str, Fact]:
    """Return which norms are differences from 1."""
    names = [name for name in found if is_norm(name)]
    source = config.get(SOURCE)
    is_original = isinstance(source, dict) and source.get("is_original") is True
    return {FACT: norms_summed(layout, StoredNorms(names, is_original, is_standalone(config)))}


def _block_config(config: dict[str, Any], found: Manifest) -> dict[str, Any]:
    """Return what mlx-lm needs of a target's configuration to build one of its layers."""
    language = language_config(config)
    kept = {key: value for key, value in language.items() if key not in _OTHER_PARTS}
    family = family_of(config)
    if family == "qwen3_5" and any(".mlp.gate." in name for name in found):
        family = "qwen3_5_moe"
    return kept | {"model_type": family}


def _check_parts(found: Manifest, layout: Layout) -> None:
    """Refuse a folder that lacks what every such layer has, or holds several layers."""
    needed = ["fc.weight", *(f"{norm}.weight" for norm in _OUTER)]
    needed += ["layers.0.input_layernorm.weight", "layers.0.self_attn.o_proj.weight"]
    if missing := [name for name in needed if name not in found]:
        raise CheckpointError(
            f"not a whole layer of {layout.label}: {listed(missing)} missing; its configuration "
            "may announce one that its files do not hold"
        )
    if others := sorted(n for n in found if n[0].isdigit() or n.startswith("layers.1.")):
        raise CheckpointError(
            f"{layout.label} has a layer for every step ({quote(others[0])}), which is not "
            "supported: only one that is run again for each"
        )


def _sizes(found: Manifest, config: dict[str, Any], is_plain: bool) -> HeadSizes:
    """Return what the shapes say; rows are as published even where weights are quantized."""
    hidden = found["fc.weight"].shape[0]
    q_norm = found.get("layers.0.self_attn.q_norm.weight")
    head_dim = q_norm.shape[0] if q_norm else 0
    queries = keys = mlp = 0
    if is_plain:
        queries = _rows(found, _QUERIES)
        n_heads = read_count(language_config(config), "num_attention_heads")
        if queries == 2 * head_dim * n_heads:  # each query is followed by its gate
            queries //= 2
        keys = _rows(found, "layers.0.self_attn.k_proj.weight")
        mlp = _rows(found, "layers.0.mlp.gate_proj.weight")
    return HeadSizes(
        hidden=hidden,
        taps=hidden,
        queries=queries,
        keys=keys,
        mlp=mlp,
        draft=_rows(found, "lm_head.weight"),
        vocabulary=_rows(found, "embed_tokens.weight"),
        head_dim=head_dim,
        n_layers=1,
        parts=frozenset(found),
    )


def _rows(found: Manifest, name: str) -> int:
    """Return the rows of a matrix; 0 where it is not there."""
    return found[name].shape[0] if name in found and found[name].shape else 0


def _check_fit(head: PublishedHead) -> None:
    """Refuse a layer of a target of other sizes."""
    sizes, target = head.sizes, head.target
    wrong = []
    if sizes.hidden != target.hidden_size:
        wrong.append(f"hidden size {sizes.hidden}, not {target.hidden_size}")
    for name, rows in (("lm_head", sizes.draft), ("embed_tokens", sizes.vocabulary)):
        if rows not in (0, target.vocab_size):
            wrong.append(f"{rows} rows of {name}, not {target.vocab_size}")
    if wrong:
        raise CheckpointError(f"the head is not for {target.name}: it has {'; '.join(wrong)}")
