"""Published EAGLE-3 heads turned into folders that `mlx_eagle.head` loads.

Shapes say how large a head is, its configuration only what shapes cannot tell, and the target's
configuration where the taps are. Reading the files is `checkpoint`, what their names mean is
`dialects`; running a head is not done here.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_eagle.convert.checkpoint import (
    find_weights,
    hash_file,
    quote_value,
    read_count,
    read_json,
    read_manifest,
    read_number,
    read_weights,
    source_name,
)
from mlx_eagle.convert.dialects import TABLES, Dialect, Widths, measure, recognise, rename
from mlx_eagle.convert.targets import TargetFacts, read_facts
from mlx_eagle.convert.write import new_folder
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.head import MODEL_TYPE, Eagle3Head, HeadConfig

FORMAT_VERSION = 1


def convert_head(
    source: Path, target: Path, out: Path, *, bits: int | None = 4, group_size: int = 64
) -> dict[str, Any]:
    """Convert a published head for a target and write it to `out`.

    Args:
        source: folder with `config.json` and the weights, `.bin` or safetensors.
        target: folder of the target, of which only `config.json` is read.
        out: folder to create; it must not exist.
        bits: 4 or 8 to quantize all linear layers, None to keep the published type.
        group_size: weights that share a scale when quantized.

    Returns:
        The configuration that was written.

    Raises:
        CheckpointError: if the head is malformed, of a kind that is not supported yet, or does
            not fit the target.
        EagleError: if `out` exists, or the head cannot be quantized that way.
    """
    facts = read_facts(target)
    config, manifest = read_json(source / "config.json"), read_manifest(source)
    if config.get("model_type") == MODEL_TYPE:
        raise CheckpointError(f"{source_name(source)} is converted already: use it as it is")
    kind = recognise(config, manifest)
    if kind.role == "target":
        raise CheckpointError(f"{source_name(source)} is a target, not a draft head")
    if kind.dialect is None:
        raise CheckpointError(
            f"{source_name(source)} is a {kind.label}: not supported yet, only heads in "
            "SafeAILab's EAGLE-3 layout are"
        )
    head_config = resolve_config(config, measure(manifest, kind.dialect), facts)
    quantization = None if bits is None else {"group_size": group_size, "bits": bits}
    _check_quantization(head_config, quantization)
    with new_folder(out) as folder:
        head, table_source = _build(source, kind.dialect, head_config)
        written = {
            "model_type": MODEL_TYPE,
            "format_version": FORMAT_VERSION,
            "algorithm": "eagle3",
            **head_config.to_dict(),
            "quantization": quantization,
            "source": _provenance(source, kind.dialect) | {"draft_to_target": table_source},
            "target": facts._asdict(),
        }
        _save(head, written, folder)
    return written


def resolve_config(config: dict[str, Any], widths: Widths, target: TargetFacts) -> HeadConfig:
    """Return the configuration of a SafeAILab head; every choice in it is explicit.

    Args:
        config: the published `config.json`.
        widths: the sizes that the head's tensors have.
        target: what the target's configuration says.

    Raises:
        CheckpointError: if the head does not fit the target, or asks for something unknown.
    """
    _check_fit(config, widths, target)
    heads = _split_heads(config, widths)
    rope = _rope(config)
    return HeadConfig(
        hidden_size=widths.hidden,
        target_hidden_size=target.hidden_size,
        target_vocab_size=target.vocab_size,
        draft_vocab_size=widths.draft,
        intermediate_size=widths.mlp,
        num_attention_heads=heads.n_heads,
        num_key_value_heads=heads.n_kv_heads,
        head_dim=heads.head_dim,
        rms_norm_eps=read_number(config, "rms_norm_eps", 1e-6),
        rope_theta=read_number(rope | config, "rope_theta", 10000.0),
        rope_scaling=_rope_scaling(rope),
        rope_interleaved=False,
        max_position_embeddings=read_count(config, "max_position_embeddings", 2048),
        taps=_default_taps(target),
        norm_before_residual=False,
        norm_before_fc=False,
        fc_norm=False,
        norm_output=False,
    )


def _check_fit(config: dict[str, Any], widths: Widths, target: TargetFacts) -> None:
    """Refuse a head that was made for a target of other sizes, or computes something else."""
    vocab_size = read_count(config, "vocab_size", target.vocab_size)
    fits = {
        "hidden size": (widths.hidden, target.hidden_size),
        "vocabulary": (vocab_size, target.vocab_size),
        "input of fc": (widths.taps, 3 * target.hidden_size),
    }
    if wrong := [
        f"{what} {ours}, not {theirs}" for what, (ours, theirs) in fits.items() if ours != theirs
    ]:
        raise CheckpointError(f"the head is not for {target.name}: it has {'; '.join(wrong)}")
    if widths.draft > target.vocab_size:
        raise CheckpointError(
            f"the head drafts from {widths.draft} tokens, {target.name} has {target.vocab_size}"
        )
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise CheckpointError(f"config.json: hidden_act is {quote_value(activation)}, not silu")


def _default_taps(target: TargetFacts) -> tuple[int, ...]:
    """Return the boundaries that heads without a choice of their own are trained on."""
    n_layers = target.num_hidden_layers
    taps = (2, n_layers // 2, n_layers - 3)
    if not taps[0] < taps[1] < taps[2]:
        raise CheckpointError(
            f"{target.name} has {n_layers} layers; taps after 2, half and all but 3 of them "
            "need at least 7"
        )
    return taps


class _Heads(NamedTuple):
    """How the rows of the attention's projections are divided."""

    n_heads: int
    n_kv_heads: int
    head_dim: int


def _split_heads(config: dict[str, Any], widths: Widths) -> _Heads:
    """Divide the projections' rows by the configured number of heads.

    The configured head_dim is not used: published ones contradict the tensors.
    """
    n_heads = read_count(config, "num_attention_heads")
    n_kv_heads = read_count(config, "num_key_value_heads", n_heads)
    head_dim = widths.queries // n_heads
    exact = (n_heads * head_dim, n_kv_heads * head_dim) == (widths.queries, widths.keys)
    if not exact or n_heads % n_kv_heads or head_dim % 2:
        raise CheckpointError(
            f"config.json: {n_heads} query and {n_kv_heads} key-value heads do not divide "
            f"projections of {widths.queries} and {widths.keys} rows"
        )
    return _Heads(n_heads, n_kv_heads, head_dim)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return the rope settings under either of the two names that configurations give them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError("config.json: rope_scaling is not an object")
    return rope


def _rope_scaling(rope: dict[str, Any]) -> dict[str, Any] | None:
    """Return the scaling in mlx-lm's form, or None for plain rope."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "linear":
        raise CheckpointError(
            f"config.json: rope scaling {quote_value(kind)} is not one that SafeAILab heads have"
        )
    return {"type": "linear", "factor": read_number(rope, "factor", 1.0)}


def _check_quantization(config: HeadConfig, quantization: dict[str, int] | None) -> None:
    """Refuse a quantization that MLX cannot do for every linear layer of the head."""
    if quantization is None:
        return
    bits, group_size = quantization["bits"], quantization["group_size"]
    if bits not in (4, 8) or group_size not in (32, 64, 128):
        raise EagleError(f"{bits} bits in groups of {group_size}: use 4 or 8 bits, 32, 64 or 128")
    queries = config.num_attention_heads * config.head_dim
    inputs = {config.hidden_size, len(config.taps) * config.hidden_size, queries}
    if uneven := [n for n in sorted(inputs | {config.intermediate_size}) if n % group_size]:
        raise EagleError(
            f"a layer with {uneven[0]} inputs does not divide into groups of {group_size}: use a "
            "smaller group size, or do not quantize"
        )


def _build(source: Path, dialect: Dialect, config: HeadConfig) -> tuple[Eagle3Head, str]:
    """Return the head with its published weights, and how its draft vocabulary was found."""
    tensors: dict[str, mx.array] = {}
    for file in find_weights(source):
        tensors |= {rename(name, dialect): array for name, array in read_weights(file).items()}
    tables = {name: np.array(tensors.pop(name)) for name in TABLES if name in tensors}
    if broken := [name for name in sorted(tensors) if not mx.isfinite(tensors[name]).all().item()]:
        raise CheckpointError(f"the weights are not finite numbers in {', '.join(broken)}")
    ids, table_source = draft_to_target(
        tables.get("d2t"), tables.get("t2d"), config.draft_vocab_size, config.target_vocab_size
    )
    head = Eagle3Head(config)
    head.load_weights([*tensors.items(), ("draft_to_target", mx.array(ids))], strict=True)
    return head, table_source


def draft_to_target(
    d2t: np.ndarray | None, t2d: np.ndarray | None, n_draft: int, n_target: int
) -> tuple[np.ndarray, str]:
    """Return the target id of every draft id [W] int32, and where it comes from.

    Published tables are offsets: draft id j is target id j + d2t[j]. Some files hold absolute ids
    instead; where d2t is unusable, t2d replaces it.

    Args:
        d2t: [W] integers, or None.
        t2d: [V] bool, true for the target ids that can be drafted, or None.
        n_draft: W, the number of draft ids.
        n_target: V, the number of target ids.

    Raises:
        CheckpointError: if the tables are missing, malformed or contradictory.
    """
    if n_draft == n_target:
        return np.arange(n_draft, dtype=np.int32), "identity"
    readings = {} if t2d is None else {"t2d": _marked_ids(t2d, n_draft, n_target)}
    if d2t is not None:
        if d2t.shape != (n_draft,) or d2t.dtype.kind != "i":
            raise CheckpointError(
                f"d2t is {d2t.dtype} {list(d2t.shape)}, expected integers [{n_draft}]"
            )
        readings |= {"d2t, offsets": np.arange(n_draft) + d2t, "d2t, absolute ids": d2t}
    if not readings:
        raise CheckpointError(f"d2t is missing: which {n_draft} of {n_target} ids are drafted?")
    label = _choose_reading(readings, n_target)
    return readings[label].astype(np.int32), label


def _marked_ids(t2d: np.ndarray, n_draft: int, n_target: int) -> np.ndarray:
    """Return the ids [W] int32 that t2d marks; they must be as many as the head has draft ids."""
    if t2d.shape != (n_target,) or t2d.dtype != np.bool_:
        raise CheckpointError(
            f"t2d is {t2d.dtype} {list(t2d.shape)}, expected bool [{n_target}], one per target id"
        )
    marked = np.flatnonzero(t2d).astype(np.int32)
    if len(marked) != n_draft:
        raise CheckpointError(f"t2d marks {len(marked)} ids, the head drafts from {n_draft}")
    return marked


def _choose_reading(readings: dict[str, np.ndarray], n_target: int) -> str:
    """Return the label of the reading to believe.

    Args:
        readings: target ids [W] by label: as t2d marks them, as d2t says if it holds offsets, and
            if it holds absolute ids. A table that the head lacks is left out.
        n_target: V, the number of target ids.
    """
    marked = readings.get("t2d")
    of_d2t = {label: ids for label, ids in readings.items() if label != "t2d"}
    if not of_d2t:
        return "t2d"
    for label, ids in of_d2t.items():
        if marked is not None and np.array_equal(ids, marked):
            return label
    offsets, absolute = of_d2t.values()
    # Two known bugs of trainers: a table of zeros, and one of 0, 1, 2, ...
    is_blank = not absolute.any() or np.array_equal(absolute, np.arange(len(absolute)))
    usable = [] if is_blank else [k for k, ids in of_d2t.items() if not _fault(ids, n_target)]
    if marked is None and usable:
        return usable[0]
    if marked is None:
        fault = "it is all zeros or 0, 1, 2, ..." if is_blank else _fault(offsets, n_target)
        raise CheckpointError(f"d2t is not usable: {fault}; and there is no t2d to replace it")
    if usable:
        raise CheckpointError("d2t and t2d name different ids, and either may be wrong")
    return "t2d"


def _fault(ids: np.ndarray, n_target: int) -> str:
    """Return what is wrong with a list [W] of target ids, or nothing."""
    if ids.min() < 0 or ids.max() >= n_target:
        return f"it leads to id {ids.min() if ids.min() < 0 else ids.max()} of {n_target}"
    return "it names a target id twice" if len(np.unique(ids)) < len(ids) else ""


def _provenance(source: Path, dialect: Dialect) -> dict[str, Any]:
    """Return where a head comes from: format, name, and the files with their checksums."""
    files = [source / "config.json", *find_weights(source)]
    return {
        "format": dialect.format,
        "name": source_name(source),
        "files": [
            {"name": file.name, "bytes": file.stat().st_size, "sha256": hash_file(file)}
            for file in files
        ],
    }


def _save(head: Eagle3Head, config: dict[str, Any], folder: Path) -> None:
    """Quantize the head as its configuration says and write both into a folder."""
    if config["quantization"] is not None:
        nn.quantize(head, **config["quantization"])
    weights = dict(tree_flatten(head.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    text = json.dumps(config, indent=2, allow_nan=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
