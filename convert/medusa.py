"""Medusa heads as three publishers name them, read into the parameters of `MedusaHead`.

The original names blocks by number (`0.0.linear.weight`, `0.1.weight` for the output layer) with
or without `medusa_head.` in front, ModelOpt writes `medusa_heads.`, and vLLM
`blocks.0.layers.0.weight` beside `lm_heads.0.weight`. A full Medusa model also holds its target,
which is left where it is.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.convert.facts import Facts
from mlx_eagle.convert.identify import Manifest
from mlx_eagle.convert.targets import TargetFacts
from mlx_eagle.convert.tensor_shapes import FLOATS
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import listed, quote, quote_value

_BLOCK = re.compile(r"(?:medusa_heads?\.)?(\d{1,2})\.(\d{1,2})\.linear\.(weight|bias)")
_OUTPUT = re.compile(r"(?:medusa_heads?\.)?(\d{1,2})\.(\d{1,2})\.(weight)")
_VLLM_BLOCK = re.compile(r"blocks\.(\d{1,2})\.layers\.(\d{1,2})\.(weight|bias)")
_VLLM_OUTPUT = re.compile(r"lm_heads\.(\d{1,2})\.(weight)")
_SHARED_OUTPUT = "lm_head.weight"
_TARGETS_OWN = re.compile(r"(model\.|lm_head\.)")


class Blocks(NamedTuple):
    """The sizes of a Medusa checkpoint; `draft` is 0 if it has no output layers."""

    hidden: int
    draft: int
    n_heads: int
    n_layers: int
    block_bias: bool


def rename_medusa(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors, or anything else by name, under the names of `MedusaHead`.

    A token map keeps its name; the tensors of the target are left out.
    """
    renamed: dict[str, Any] = {}
    with_target = any(name.startswith("medusa_head") for name in tensors)
    for name, value in tensors.items():
        if with_target and _TARGETS_OWN.match(name):
            continue
        renamed[_rename(name)] = value
    shared = renamed.pop(_SHARED_OUTPUT, None)
    if shared is not None:
        heads = {name.split(".")[1] for name in renamed if name.startswith("depths.")}
        renamed |= {f"depths.{i}.lm_head.weight": shared for i in heads}
    return renamed


def _rename(name: str) -> str:
    if match := _BLOCK.fullmatch(name) or _VLLM_BLOCK.fullmatch(name):
        head, block, kind = match.groups()
        return f"depths.{int(head)}.blocks.{int(block)}.linear.{kind}"
    if match := _OUTPUT.fullmatch(name) or _VLLM_OUTPUT.fullmatch(name):
        return f"depths.{int(match[1])}.lm_head.weight"
    return name


def measure_medusa(manifest: Manifest) -> Blocks:
    """Check every tensor of a Medusa checkpoint.

    Raises:
        CheckpointError: listing all tensors that are unknown, missing or misshapen.
    """
    found: Manifest = rename_medusa(manifest)
    blocks = [re.fullmatch(r"depths\.(\d+)\.blocks\.(\d+)\.linear\.weight", name) for name in found]
    pairs = [(int(match[1]), int(match[2])) for match in blocks if match]
    if not pairs:
        raise CheckpointError("Medusa heads need at least one block: no *.linear.weight was found")
    n_heads, n_layers = max(i for i, _ in pairs) + 1, max(j for _, j in pairs) + 1
    hidden = found["depths.{}.blocks.{}.linear.weight".format(*pairs[0])].shape[0]
    own = any(name.endswith("lm_head.weight") for name in found)
    draft = next((i.shape[0] for n, i in found.items() if n.endswith("lm_head.weight")), 0)
    bias = any(name.endswith("linear.bias") for name in found)
    expected: dict[str, tuple[int, ...]] = {}
    for i in range(n_heads):
        for j in range(n_layers):
            expected[f"depths.{i}.blocks.{j}.linear.weight"] = (hidden, hidden)
            if bias:
                expected[f"depths.{i}.blocks.{j}.linear.bias"] = (hidden,)
        if own:
            expected[f"depths.{i}.lm_head.weight"] = (draft, hidden)
    problems = [f"missing {name}" for name in expected if name not in found]
    for name, info in found.items():
        if name == "token_map":
            continue
        if name not in expected:
            problems.append(f"unknown {quote(name)} {list(info.shape)}")
        elif info.shape != expected[name] or info.dtype not in FLOATS:
            problems.append(
                f"{name} is {info.dtype} {list(info.shape)}, expected {list(expected[name])}"
            )
    if problems:
        raise CheckpointError(f"not Medusa heads as expected: {listed(problems)}")
    return Blocks(hidden, draft, n_heads, n_layers, bias)


def resolve_medusa(config: dict[str, Any], blocks: Blocks, target: TargetFacts) -> Facts:
    """Return all facts about Medusa heads: nearly everything is in the shapes.

    Raises:
        CheckpointError: if they do not fit the target.
    """
    draft = blocks.draft or target.vocab_size
    if blocks.hidden != target.hidden_size or draft > target.vocab_size:
        raise CheckpointError(
            f"the heads are not for {target.name}: they have hidden size {blocks.hidden} and "
            f"{draft} tokens, not {target.hidden_size} and {target.vocab_size}"
        )
    facts = Facts()
    claimed = config.get("medusa_num_heads")
    origin = "tensors"
    if claimed is not None and claimed != blocks.n_heads:
        origin = f"tensors, though config.json says {quote_value(claimed)}"
    facts.put("algorithm", "medusa", "the tensors are those of Medusa heads")
    facts.put("hidden_size", blocks.hidden, "shape of linear.weight")
    facts.put("target_hidden_size", target.hidden_size, "target")
    facts.put("target_vocab_size", target.vocab_size, "target")
    facts.put("draft_vocab_size", draft, "shape of the output layer" if blocks.draft else "target")
    facts.put("num_heads", blocks.n_heads, origin)
    facts.put("num_layers", blocks.n_layers, "tensors")
    facts.put("block_bias", blocks.block_bias, "tensors")
    facts.put("own_lm_heads", blocks.draft > 0, "tensors")
    facts.put("taps", [target.num_hidden_layers + 1], "Medusa reads the final norm's output")
    return facts


def token_map_offsets(token_map: mx.array) -> mx.array:
    """Return vLLM's table of absolute ids [W] as the offsets that d2t holds."""
    return token_map.astype(mx.int64) - mx.arange(token_map.size, dtype=mx.int64)
