"""From a published configuration and the shapes of the tensors to all facts of a `HeadConfig`.

What does not fit together is refused here; each single fact is decided by its rule in `rules.py`,
unless the user decides it.
"""

from collections.abc import Mapping
from typing import Any

from mlx_eagle.convert.block import BLOCK_SETTABLE, resolve_block_facts
from mlx_eagle.convert.dialects import BLOCKS, Dialect
from mlx_eagle.convert.facts import Fact, PublishedHead, read_flag
from mlx_eagle.convert.identify import Manifest
from mlx_eagle.convert.medusa import read_medusa_sizes, resolve_medusa_facts
from mlx_eagle.convert.mtp.facts import resolve_mtp_facts
from mlx_eagle.convert.rope_config import read_scaling
from mlx_eagle.convert.rules import RULES, max_position_embeddings
from mlx_eagle.convert.taps import check_taps
from mlx_eagle.convert.target_facts import TargetFacts
from mlx_eagle.convert.tensor_shapes import read_sizes
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import read_count
from mlx_eagle.files.quoting import listed, quote_value
from mlx_eagle.heads.config import HeadConfig, problems

BY_USER = "set by the user"

# What a user may decide, because no file can be trusted with it.
SETTABLE = (
    *("taps", "rope_theta", "rope_scaling", "rope_interleaved", "norm_before_residual"),
    *("norm_output", "final_norm", "double_norm", "max_position_embeddings", "mask_token_id"),
)

# Keys by which a publisher announces that a part is missing on purpose.
_ABSENCES = {
    "use_aux_hidden_state": "fc.weight",
    "use_input_layernorm_in_first_layer": "layers.0.input_layernorm.weight",
    "use_last_layernorm": "norm.weight",
}
# Keys that announce a part, which then has to be there.
_PRESENCES = {"norm_before_fc": "input_norm.weight", "fc_norm": "fc_norm.0.weight"}


def resolve_facts(
    config: dict[str, Any],
    manifest: Manifest,
    dialect: Dialect,
    target: TargetFacts,
    settings: Mapping[str, Any],
) -> dict[str, Fact]:
    """Return all facts about a head, by the names of `HeadConfig`, `MedusaConfig` or `MtpConfig`.

    Args:
        config: the published `config.json`.
        manifest: the head's tensors under their published names.
        dialect: whose head it is.
        target: what the target's configuration says.
        settings: facts that the user has decided, by the names in SETTABLE; no rule is asked.

    Raises:
        CheckpointError: if the tensors are not those of such a head, or the head does not fit the
            target, or asks for something unknown.
    """
    if dialect.algorithm == "medusa":
        if settings:
            raise CheckpointError("Medusa heads have no facts to set")
        return resolve_medusa_facts(config, read_medusa_sizes(manifest), target)
    if dialect.algorithm == "mtp":
        return resolve_mtp_facts(config, manifest, dialect, target, settings)
    sizes = read_sizes(manifest, dialect)
    layer_config = config.get(dialect.nested) if dialect.nested else config
    if not isinstance(layer_config, dict):
        raise CheckpointError(f"config.json: {dialect.nested} is not an object")
    head = PublishedHead(config, layer_config, sizes, dialect, target)
    is_block = dialect.algorithm in BLOCKS
    if not is_block:
        _check_parts(head)
    _check_activation(head)
    _check_fit(head)
    decided = _decided(head, settings, BLOCK_SETTABLE if is_block else SETTABLE)
    if is_block:
        return resolve_block_facts(head, decided)
    facts = {name: decided.get(name) or rule(head) for name, rule in RULES.items()}
    if wrong := problems(HeadConfig, {name: fact.value for name, fact in facts.items()}):
        raise CheckpointError(f"{listed(wrong)}: what config.json or --set says is impossible")
    return facts


def _check_parts(head: PublishedHead) -> None:
    """Refuse a head whose tensors and configuration disagree about its parts."""
    parts = head.sizes.parts
    for key, part in _PRESENCES.items():
        if read_flag(head.flags, key, False) and part not in parts:
            raise CheckpointError(f"config.json sets {key}, but {part} is missing")
    for key, part in _ABSENCES.items():
        may_lack_it = head.dialect.algorithm == "eagle" or part in parts
        if not may_lack_it and read_flag(head.flags, key, True):
            raise CheckpointError(f"{part} is missing, and config.json does not say {key}: false")
    n_drafted = head.flags.get("draft_vocab_size")
    if "lm_head.weight" not in parts and n_drafted not in (None, 0, head.target.vocab_size):
        raise CheckpointError(
            f"lm_head.weight is missing, and config.json says that it drafts from "
            f"{quote_value(n_drafted)} tokens of {head.target.vocab_size}: the target's output "
            "layer cannot stand in; fetch the head again"
        )


def _check_activation(head: PublishedHead) -> None:
    """Refuse a head whose MLP is another than the one that is implemented."""
    activation = head.layer_config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise CheckpointError(f"config.json: hidden_act is {quote_value(activation)}, not silu")


def _check_fit(head: PublishedHead) -> None:
    """Refuse a head that was made for a target of other sizes."""
    sizes, target = head.sizes, head.target
    wrong = []
    vocabulary = sizes.vocabulary or read_count(head.layer_config, "vocab_size", target.vocab_size)
    if vocabulary != target.vocab_size:
        wrong.append(f"vocabulary {vocabulary}, not {target.vocab_size}")
    shares = not {"embed_tokens.weight", "lm_head.weight"} <= sizes.parts
    if sizes.hidden != target.hidden_size and (shares or not head.fuses_taps):
        wrong.append(f"hidden size {sizes.hidden}, not {target.hidden_size}")
    if sizes.draft > target.vocab_size:
        wrong.append(f"a draft vocabulary of {sizes.draft}, more than {target.vocab_size}")
    if wrong:
        raise CheckpointError(f"the head is not for {target.name}: it has {'; '.join(wrong)}")
    if head.fuses_taps and sizes.taps % target.hidden_size:
        raise CheckpointError(
            f"the head is not for {target.name}: fc reads {sizes.taps} numbers, no multiple of "
            f"the target's hidden size {target.hidden_size}"
        )


def _decided(
    head: PublishedHead, settings: Mapping[str, Any], settable: tuple[str, ...]
) -> dict[str, Fact]:
    """Return the facts that the user has decided."""
    if unknown := sorted(set(settings) - set(settable)):
        raise CheckpointError(
            f"{unknown[0]} cannot be set; what can be is {', '.join(sorted(settable))}"
        )
    values = dict(settings)
    if "taps" in values and not head.fuses_taps:
        raise CheckpointError("taps cannot be set: the head has no fc over taps")
    if "taps" in values:
        check_taps(values["taps"], BY_USER, head.target.num_hidden_layers, head.n_taps)
    if isinstance(scaling := values.get("rope_scaling"), dict):
        trained = values.get("max_position_embeddings", max_position_embeddings(head).value)
        values["rope_scaling"] = read_scaling(scaling, trained)
    return {name: Fact(value, BY_USER) for name, value in values.items()}
