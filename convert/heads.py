"""Published heads converted to folders that `heads/load.py` loads.

The order of work: read the headers, identify the dialect, read the sizes, resolve the facts, read
the weights, write. Running a head is not done here.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_eagle.convert.checkpoint import read_manifest, read_weights, require_finite
from mlx_eagle.convert.dialects import BLOCKS, Dialect, parameter_name
from mlx_eagle.convert.draft_ids import draft_to_target
from mlx_eagle.convert.facts import Fact, facts_as_json
from mlx_eagle.convert.identify import identify_kind
from mlx_eagle.convert.medusa import medusa_parameters, token_map_offsets
from mlx_eagle.convert.mtp.layouts import head_names
from mlx_eagle.convert.mtp.weights import read_mtp_weights
from mlx_eagle.convert.resolve_config import resolve_facts
from mlx_eagle.convert.target_facts import TargetFacts, read_target_facts
from mlx_eagle.convert.tensor_shapes import TABLES, UNUSED
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.atomic import new_folder
from mlx_eagle.files.folders import find_weights, source_name
from mlx_eagle.files.json_files import read_json
from mlx_eagle.files.plain_files import hash_file
from mlx_eagle.files.quoting import one_line
from mlx_eagle.heads.config import FORMAT_VERSION, MODEL_TYPE
from mlx_eagle.heads.load import Head, assemble


def convert_head(
    source: Path,
    target: Path,
    out: Path,
    *,
    bits: int | None = 4,
    group_size: int = 64,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Convert a published head for a target and write it to `out`.

    Args:
        source: folder with `config.json` and the weights, safetensors, `.bin` or `.pt`.
        target: folder of the target, of which only `config.json` is read.
        out: folder to create; it must not exist.
        bits: 4 or 8 to quantize all linear layers, None to keep the published type.
        group_size: weights that share a scale when quantized.
        settings: facts that the caller decides, by the names in `resolve_config.SETTABLE`.

    Returns:
        The configuration that was written.

    Raises:
        CheckpointError: if the head is malformed, not supported, or does not fit the target.
        EagleError: if `out` exists, or the head cannot be quantized that way.
    """
    target_facts = read_target_facts(target)
    published = read_published(source, target_facts, settings or {})
    quantization = None if bits is None else {"group_size": group_size, "bits": bits}
    with new_folder(out) as folder:
        if published.dialect.algorithm == "mtp":
            weights, stored = read_mtp_weights(source, published.facts)
            table_source, quantization = "all tokens", stored or quantization
            weights |= {"draft_to_target": mx.arange(target_facts.vocab_size, dtype=mx.int32)}
        else:
            (weights, table_source), stored = _read_tensors(source, published), None
        head = _assembled(published.facts, weights, stored)
        head = quantized(head, None if stored else quantization)
        about = {
            "quantization": quantization,
            "source": _provenance(source, published.dialect, table_source),
            "target": target_facts._asdict(),
        }
        written = _configuration(published.facts, about)
        write_head(head, written, folder)
    return written


def _assembled(
    facts: dict[str, Fact], weights: dict[str, mx.array], stored: dict[str, Any] | None = None
) -> Head:
    """Return the head, quantized as its file is; what does not fit is one error."""
    try:
        return assemble(facts_as_json(facts, {"quantization": stored}), weights)
    except (ValueError, LookupError, TypeError) as error:
        reason = one_line(error, 800)
        raise CheckpointError(f"the tensors do not fit the facts: {reason}") from error


_ROUTERS = (".mlp.gate", ".shared_expert_gate")


class Published(NamedTuple):
    """A published head as far as its headers and its configuration tell."""

    dialect: Dialect
    facts: dict[str, Fact]


def read_published(source: Path, target: TargetFacts, settings: dict[str, Any]) -> Published:
    """Identify a head, read its sizes and resolve its facts; no weights are read."""
    config, manifest = read_json(source / "config.json"), read_manifest(source)
    if config.get("model_type") == MODEL_TYPE:
        raise CheckpointError(f"{source_name(source)} is converted already: use it as it is")
    kind = identify_kind(config, manifest)
    if kind.role == "target":
        own = (
            "; its multi-token prediction layer is mtp:FOLDER"
            if head_names(manifest, config)
            else ""
        )
        raise CheckpointError(f"{source_name(source)} is a target, not a draft head{own}")
    if kind.dialect is None:
        raise CheckpointError(
            f"{source_name(source)} is a {kind.label}, not supported: {kind.refusal}"
        )
    facts = resolve_facts(config, manifest, kind.dialect, target, settings)
    return Published(kind.dialect, facts)


def _read_tensors(source: Path, published: Published) -> tuple[dict[str, mx.array], str]:
    """Return the parameters by our names, and how the draft vocabulary was found."""
    is_medusa = published.dialect.algorithm == "medusa"
    tensors: dict[str, mx.array] = {}
    for file in find_weights(source):
        part = read_weights(file)
        if is_medusa:
            tensors |= medusa_parameters(part)
        else:
            tensors |= {parameter_name(name): array for name, array in part.items()}
    tables = {name: np.array(tensors.pop(name)) for name in TABLES if name in tensors}
    if "token_map" in tensors:
        tables["d2t"] = np.array(token_map_offsets(tensors.pop("token_map")))
    require_finite(tensors)
    if "mask_hidden" in tensors:
        tensors["mask_hidden"] = tensors["mask_hidden"].reshape(-1)
    facts = published.facts
    if published.dialect.algorithm in BLOCKS:
        tensors = _used(tensors, facts)
    n_draft, n_target = facts["draft_vocab_size"].value, facts["target_vocab_size"].value
    ids, label = draft_to_target(tables.get("d2t"), tables.get("t2d"), n_draft, n_target)
    return tensors | {"draft_to_target": mx.array(ids)}, label


def _used(tensors: dict[str, mx.array], facts: dict[str, Fact]) -> dict[str, mx.array]:
    """Return the tensors of a block head that are used: not copies of its target's."""
    copies = {"own_embedding": "embed_tokens.", "own_lm_head": "lm_head."}
    unused = (*UNUSED, *(prefix for fact, prefix in copies.items() if not facts[fact].value))
    return {name: array for name, array in tensors.items() if not name.startswith(unused)}


def quantized(head: Head, quantization: dict[str, int] | None) -> Head:
    """Return the head with its linear layers quantized but for routers of experts, or as it is.

    Raises:
        EagleError: if MLX cannot quantize every linear layer that way.
    """
    if quantization is None:
        return head
    bits, group_size = quantization["bits"], quantization["group_size"]
    if bits not in (4, 8) or group_size not in (32, 64, 128):
        raise EagleError(f"{bits} bits in groups of {group_size}: use 4 or 8 bits, 32, 64 or 128")
    layers = [m for path, m in head.named_modules() if _is_quantized(path, m)]
    inputs = {layer.weight.shape[-1] for layer in layers}
    if uneven := [n for n in sorted(inputs) if n % group_size]:
        raise EagleError(
            f"a layer with {uneven[0]} inputs does not divide into groups of {group_size}: use a "
            "smaller group size, or do not quantize"
        )
    nn.quantize(head, group_size, bits, class_predicate=_is_quantized)
    return head


def _is_quantized(path: str, module: nn.Module) -> bool:
    """Say whether a layer is one of those that are quantized; routers decide by small margins."""
    return hasattr(module, "to_quantized") and not path.endswith(_ROUTERS)


def _configuration(facts: dict[str, Fact], about: dict[str, Any]) -> dict[str, Any]:
    """Return the `config.json` of a converted head."""
    header = {"model_type": MODEL_TYPE, "format_version": FORMAT_VERSION}
    return header | facts_as_json(facts, about)


def _provenance(source: Path, dialect: Dialect, table_source: str) -> dict[str, Any]:
    """Return where a head comes from: format, name, files with their checksums, its draft ids."""
    files = [source / "config.json", *find_weights(source)]
    return {
        "format": dialect.format,
        "name": source_name(source),
        "files": [
            {"name": file.name, "bytes": file.stat().st_size, "sha256": hash_file(file)}
            for file in files
        ],
        "draft_to_target": table_source,
    }


def write_head(head: Head, config: dict[str, Any], folder: Path) -> None:
    """Write a head and its configuration into a folder."""
    weights = dict(tree_flatten(head.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    text = json.dumps(config, indent=2, allow_nan=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
