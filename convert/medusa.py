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

from mlx_eagle.convert.facts import Fact
from mlx_eagle.convert.identify import Manifest
from mlx_eagle.convert.target_facts import TargetFacts
from mlx_eagle.convert.tensor_shapes import FLOATS
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import listed, quote, quote_value

_BLOCK = re.compile(r"(?:medusa_heads?\.)?(\d{1,2})\.(\d{1,2})\.linear\.(weight|bias)")
_OUTPUT = re.compile(r"(?:medusa_heads?\.)?(\d{1,2})\.(\d{1,2})\.(weight)")
_VLLM_BLOCK = re.compile(r"blocks\.(\d{1,2})\.layers\.(\d{1,2})\.(weight|bias)")
_VLLM_OUTPUT = re.compile(r"lm_heads\.(\d{1,2})\.(weight)")
_SHARED_OUTPUT = "lm_head.weight"
_TARGETS_OWN = re.compile(r"(model\.|lm_head\.)")


class MedusaSizes(NamedTuple):
    """The sizes of a Medusa checkpoint; `draft` is 0 if it has no output layers."""

    hidden: int
    draft: int
    n_heads: int
    n_layers: int
    block_bias: bool
    own_lm_heads: bool


def medusa_parameters(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return tensors, or anything else by name, under the names of `MedusaHead`.

    A token map keeps its name; the tensors of the target are left out.
    """
    renamed: dict[str, Any] = {}
    with_target = any(name.startswith("medusa_head") for name in tensors)
    for name, value in tensors.items():
        if with_target and _TARGETS_OWN.match(name):
            continue
        renamed[_parameter_name(name)] = value
    shared = renamed.pop(_SHARED_OUTPUT, None)
    if shared is not None:
        heads = {name.split(".")[1] for name in renamed if name.startswith("depths.")}
        renamed |= {f"depths.{i}.lm_head.weight": shared for i in heads}
    return renamed


def _parameter_name(name: str) -> str:
    """Return the parameter of `MedusaHead` that a published name stands for, or the name."""
    if match := _BLOCK.fullmatch(name) or _VLLM_BLOCK.fullmatch(name):
        head, block, kind = match.groups()
        return f"depths.{int(head)}.blocks.{int(block)}.linear.{kind}"
    if match := _OUTPUT.fullmatch(name) or _VLLM_OUTPUT.fullmatch(name):
        return f"depths.{int(match[1])}.lm_head.weight"
    return name


def read_medusa_sizes(manifest: Manifest) -> MedusaSizes:
    """Check every tensor of a Medusa checkpoint.

    Raises:
        CheckpointError: listing all tensors that are unknown, missing or misshapen.
    """
    found: Manifest = medusa_parameters(manifest)
    blocks = [re.fullmatch(r"depths\.(\d+)\.blocks\.(\d+)\.linear\.weight", name) for name in found]
    pairs = [(int(match[1]), int(match[2])) for match in blocks if match]
    if not pairs:
        raise CheckpointError("Medusa heads need at least one block: no *.linear.weight was found")
    sizes = MedusaSizes(
        hidden=found["depths.{}.blocks.{}.linear.weight".format(*pairs[0])].shape[0],
        draft=next((i.shape[0] for n, i in found.items() if n.endswith("lm_head.weight")), 0),
        n_heads=max(i for i, _ in pairs) + 1,
        n_layers=max(j for _, j in pairs) + 1,
        block_bias=any(name.endswith("linear.bias") for name in found),
        own_lm_heads=any(name.endswith("lm_head.weight") for name in found),
    )
    expected = expected_shapes(sizes)
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
    return sizes


def expected_shapes(sizes: MedusaSizes) -> dict[str, tuple[int, ...]]:
    """Return the parameters of a `MedusaHead` of these sizes, and their shapes."""
    hidden, expected = sizes.hidden, dict[str, tuple[int, ...]]()
    for i in range(sizes.n_heads):
        for j in range(sizes.n_layers):
            expected[f"depths.{i}.blocks.{j}.linear.weight"] = (hidden, hidden)
            if sizes.block_bias:
                expected[f"depths.{i}.blocks.{j}.linear.bias"] = (hidden,)
        if sizes.own_lm_heads:
            expected[f"depths.{i}.lm_head.weight"] = (sizes.draft, hidden)
    return expected


def resolve_medusa_facts(
    config: dict[str, Any], sizes: MedusaSizes, target: TargetFacts
) -> dict[str, Fact]:
    """Return all facts about Medusa heads: nearly everything is in the shapes.

    Raises:
        CheckpointError: if they do not fit the target.
    """
    draft = sizes.draft or target.vocab_size
    if sizes.hidden != target.hidden_size or draft > target.vocab_size:
        raise CheckpointError(
            f"the heads are not for {target.name}: they have hidden size {sizes.hidden} and "
            f"{draft} tokens, not {target.hidden_size} and {target.vocab_size}"
        )
    claimed, origin = config.get("medusa_num_heads"), "tensors"
    if claimed is not None and claimed != sizes.n_heads:
        origin = f"tensors, though config.json says {quote_value(claimed)}"
    taps = [target.num_hidden_layers + 1]
    return {
        "algorithm": Fact("medusa", "the tensors are those of Medusa heads"),
        "hidden_size": Fact(sizes.hidden, "shape of linear.weight"),
        "target_hidden_size": Fact(target.hidden_size, "target"),
        "target_vocab_size": Fact(target.vocab_size, "target"),
        "draft_vocab_size": Fact(draft, "shape of the output layer" if sizes.draft else "target"),
        "num_heads": Fact(sizes.n_heads, origin),
        "num_layers": Fact(sizes.n_layers, "tensors"),
        "block_bias": Fact(sizes.block_bias, "tensors"),
        "own_lm_heads": Fact(sizes.draft > 0, "tensors"),
        "taps": Fact(taps, "Medusa reads the final norm's output"),
    }


def token_map_offsets(token_map: mx.array) -> mx.array:
    """Return vLLM's table of absolute ids [W] as the offsets that d2t holds."""
    return token_map.astype(mx.int64) - mx.arange(token_map.size, dtype=mx.int64)
