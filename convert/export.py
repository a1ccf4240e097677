"""Heads in our own format written in the layout of a publisher, for the engines that read that.

The way back from `heads.py`. What a layout cannot say is refused by name before anything is
written, and what was written is read back by the rules that convert published heads: weights and
facts must be the same.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_eagle.convert.checkpoint import require_finite
from mlx_eagle.convert.dialects import BLOCKS
from mlx_eagle.convert.heads import read_published
from mlx_eagle.convert.layout_files import layout_config, layout_tensors
from mlx_eagle.convert.publisher_layouts import LAYOUTS, find_unsupported
from mlx_eagle.convert.target_embedding import read_target_embedding
from mlx_eagle.convert.target_facts import TargetFacts, read_target_facts
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.atomic import new_folder
from mlx_eagle.files.folders import source_name
from mlx_eagle.files.json_files import read_count, read_json
from mlx_eagle.files.quoting import listed, quote_value
from mlx_eagle.heads.config import ALGORITHMS, HeadConfig
from mlx_eagle.heads.load import load_head, read_head_config

_TABLE = "draft_to_target"
_EMBEDDING = "embed_tokens.weight"


class Exported(NamedTuple):
    """What was written: its configuration, the number of tensors, and their type."""

    config: dict[str, Any]
    n_tensors: int
    dtype: str
    has_embedding: bool


def export_head(
    head: Path,
    out: Path,
    layout: str,
    *,
    target: Path | None = None,
    verifier: str | None = None,
) -> Exported:
    """Write a head of our own format to `out` in a publisher's layout.

    Args:
        head: folder of a converted or trained head that is not quantized.
        out: folder to create; it must not exist.
        layout: "safeailab", "specforge" or "speculators".
        target: folder of the target; in the layout speculators a head without an embedding then
            gets a copy of the target's. Without it the facts that the head keeps are used.
        verifier: what the layout speculators is to call the target; None for its own name.

    Raises:
        CheckpointError: if the layout cannot say what the head is, naming each such fact.
        EagleError: if there is no such layout, or `out` exists.
    """
    if layout not in LAYOUTS:
        raise EagleError(f"there is no layout {layout!r}: the layouts are {', '.join(LAYOUTS)}")
    config, weights = _read(head)
    name = source_name(head)
    made_for = _find_target(read_head_config(head), config, target)
    _refuse_unsupported(name, layout, config, made_for, weights[_TABLE])
    if target is not None and layout == "speculators" and not config.own_embedding:
        shape = (config.target_vocab_size, config.hidden_size)
        weights[_EMBEDDING] = read_target_embedding(target, shape).astype(_dtype(weights))
    named = {"name_or_path": verifier or made_for.name, "architectures": _architectures(target)}
    dtype = str(_dtype(weights)).rpartition(".")[2]
    written = layout_config(layout, config, made_for, named, dtype)
    tensors = layout_tensors(layout, config, weights)
    with new_folder(out) as folder:
        text = json.dumps(written, indent=2, allow_nan=False)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")
        file = str(folder / "model.safetensors")
        mx.save_safetensors(file, tensors, metadata={"format": "pt"})
        _check_facts(folder, config, made_for)
    return Exported(written, len(tensors), dtype, _EMBEDDING in tensors)


def possible_layouts(head: Path) -> list[str]:
    """Return the layouts that can say what a head is, in the order of `LAYOUTS`.

    Args:
        head: folder of a converted or trained head that is not quantized and names its target.

    Raises:
        CheckpointError: if it is not sound, or does not name its target.
    """
    loaded = load_head(head)
    if type(loaded.config) is not HeadConfig or not _is_ascending(loaded.draft_to_target):
        return []
    target = _find_target(read_head_config(head), loaded.config, None)
    return [layout for layout in LAYOUTS if not find_unsupported(layout, loaded.config, target)]


def _is_ascending(table: mx.array) -> bool:
    """Say whether draft ids [W] are, as every layout has them."""
    return bool((np.diff(np.array(table)) > 0).all())


def _read(head: Path) -> tuple[HeadConfig, dict[str, mx.array]]:
    """Return the facts and the parameters of a head that can be exported at all."""
    name, config = source_name(head), read_head_config(head)
    others = {"medusa": "Medusa heads", "mtp": "a multi-token prediction layer"}
    others |= {name: f"a {ALGORITHMS[name]}" for name in BLOCKS}
    if (kind := config.get("algorithm")) in others:
        raise CheckpointError(f"{name} has {others[kind]}, for which there is no layout here")
    if config.get("quantization"):
        raise CheckpointError(
            f"{name} is quantized, and no layout holds MLX's quantized weights: export the head as "
            "it was before, or convert it again with --head-bits none"
        )
    loaded = load_head(head)
    assert isinstance(loaded.config, HeadConfig), "only Medusa heads have another configuration"
    weights = dict(tree_flatten(loaded.parameters()))
    require_finite({name: array for name, array in weights.items() if name != _TABLE})
    return loaded.config, weights


def _dtype(weights: dict[str, mx.array]) -> mx.Dtype:
    """Return the type of a head's weights: that of one which every head has."""
    return weights["layers.0.self_attn.o_proj.weight"].dtype


def _architectures(target: Path | None) -> list[str]:
    """Return what a target's configuration calls its class."""
    names = read_json(target / "config.json").get("architectures") if target else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _find_target(raw: dict[str, Any], head: HeadConfig, target: Path | None) -> TargetFacts:
    """Return what the head drafts for, as the head keeps it or as the user names it.

    Raises:
        CheckpointError: if the head does not say it, or it is for another target.
    """
    kept = raw.get("target")
    kept = kept if isinstance(kept, dict) else {}
    facts = _kept_facts(kept) if target is None else read_target_facts(target)
    n_layers = kept.get("num_hidden_layers", facts.num_hidden_layers)
    expected = (head.target_hidden_size, head.target_vocab_size, n_layers)
    found = (facts.hidden_size, facts.vocab_size, facts.num_hidden_layers)
    if found != expected:
        raise CheckpointError(
            f"the head is not for {facts.name}: it expects hidden size {expected[0]}, vocabulary "
            f"{expected[1]} and {quote_value(expected[2])} layers, not {found[0]}, {found[1]} and "
            f"{found[2]}; name its own target with --target"
        )
    return facts


def _kept_facts(kept: dict[str, Any]) -> TargetFacts:
    """Return the facts about its target that a head keeps.

    Raises:
        CheckpointError: if it keeps none.
    """
    name, model_type = kept.get("name"), kept.get("model_type")
    if not isinstance(name, str) or not isinstance(model_type, str):
        raise CheckpointError("the head does not say what it was made for: name it with --target")
    return TargetFacts(
        name=name,
        model_type=model_type,
        num_hidden_layers=read_count(kept, "num_hidden_layers"),
        hidden_size=read_count(kept, "hidden_size"),
        vocab_size=read_count(kept, "vocab_size"),
        config_sha256=str(kept.get("config_sha256")),
    )


def _refuse_unsupported(
    name: str, layout: str, head: HeadConfig, target: TargetFacts, table: mx.array
) -> None:
    """Refuse a head that a layout cannot say, and name the layouts that can.

    Raises:
        CheckpointError: naming every fact that would be lost.
    """
    wrong = find_unsupported(layout, head, target)
    others = [other for other in LAYOUTS if not find_unsupported(other, head, target)]
    if not _is_ascending(table):
        wrong.append("its draft ids are not ascending")
        others = []
    if wrong:
        advice = f"use the layout {' or '.join(others)}" if others else "no other layout can either"
        raise CheckpointError(
            f"{name}: the layout {layout} cannot say this: {listed(wrong, most=24)}; {advice}"
        )


def _check_facts(folder: Path, head: HeadConfig, target: TargetFacts) -> None:
    """Refuse what would be read back as another head than it is.

    An embedding that was copied from the target is the one difference.

    Raises:
        CheckpointError: naming the first fact that differs.
    """
    found = {name: fact.value for name, fact in read_published(folder, target, {}).facts.items()}
    for name, value in head.to_dict().items():
        if name != "own_embedding" and found[name] != value:
            raise CheckpointError(
                f"the layout cannot say that {name} is {json.dumps(value)}: it would be read as "
                f"{json.dumps(found[name])}"
            )
