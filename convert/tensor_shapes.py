"""What the shapes of a head's tensors say: all its sizes, and which parts it has.

Every tensor is compared with the parameters of `EagleHead`; unknown, missing and misshapen ones
are reported together. No weights are read. The parameters stand here as a table, because the
module imports mlx-lm, which takes seconds, and `mlx-eagle inspect` does without; a test compares
the table with the module.
"""

import re
from typing import NamedTuple

from mlx_eagle.convert.dialects import BLOCKS, Dialect, parameter_name
from mlx_eagle.convert.identify import Manifest
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import listed, quote
from mlx_eagle.files.safetensors import TensorInfo

FLOATS = ("F16", "BF16", "F32")

# The tables of the draft vocabulary, which are not parameters, and their types.
TABLES = {"d2t": ("I64", "I32"), "t2d": ("BOOL",)}

# The parameters of a decoder layer and their axes; "input" is 2 h in an EAGLE-3 head's first layer.
_LAYER: dict[str, tuple[str, ...]] = {
    "self_attn.q_proj.weight": ("queries", "input"),
    "self_attn.k_proj.weight": ("keys", "input"),
    "self_attn.v_proj.weight": ("keys", "input"),
    "self_attn.o_proj.weight": ("hidden", "queries"),
    "mlp.gate_proj.weight": ("mlp", "hidden"),
    "mlp.up_proj.weight": ("mlp", "hidden"),
    "mlp.down_proj.weight": ("hidden", "mlp"),
    "post_attention_layernorm.weight": ("hidden",),
}
# Parts of a layer that a head has in all of its layers or in none.
_LAYER_OPTIONS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"self_attn.q_norm.weight": ("head_dim",), "self_attn.k_norm.weight": ("head_dim",)},
    {
        "self_attn.q_proj.bias": ("queries",),
        "self_attn.k_proj.bias": ("keys",),
        "self_attn.v_proj.bias": ("keys",),
    },
    {"self_attn.o_proj.bias": ("hidden",)},
    {"self_attn.attention_sink_bias": ("sinks",)},
    {
        "mlp.gate_proj.bias": ("mlp",),
        "mlp.up_proj.bias": ("mlp",),
        "mlp.down_proj.bias": ("hidden",),
    },
)
_OUTPUT = "lm_head.weight"
# What every EAGLE-3 head has beside its layers, unless its publisher may leave it out.
_EAGLE3: dict[str, tuple[str, ...]] = {
    "fc.weight": ("hidden", "taps"),
    "layers.0.input_layernorm.weight": ("hidden",),
    "layers.0.hidden_norm.weight": ("hidden",),
    "norm.weight": ("hidden",),
    _OUTPUT: ("draft", "hidden"),
}
_OPTIONS: dict[str, tuple[str, ...]] = {
    "fc.bias": ("hidden",),
    "embed_tokens.weight": ("vocabulary", "hidden"),
}
# What every block head has beside its layers, and what it may have: DSpark's bias, in the order of
# `MarkovHead`, and tensors that are not used (`UNUSED`).
_BLOCK: dict[str, tuple[str, ...]] = {
    "fc.weight": ("hidden", "taps"),
    "hidden_norm.weight": ("hidden",),
    "norm.weight": ("hidden",),
}
_BLOCK_OPTIONS: dict[str, tuple[str, ...]] = {
    **_OPTIONS,
    _OUTPUT: ("draft", "hidden"),
    "markov_head.markov_w1.weight": ("vocabulary", "rank"),
    "markov_head.markov_w2.weight": ("draft", "rank"),
    "markov_head.gate_proj.weight": ("rank", "gate inputs"),
    "markov_head.gate_proj.bias": ("rank",),
    "markov_head.joint_proj.weight": ("joint", "joint inputs"),
    "markov_head.joint_proj.bias": ("joint",),
    "confidence_head.proj.weight": ("one", "confidence inputs"),
    "confidence_head.proj.bias": ("one",),
    "verifier_norm.weight": ("hidden",),
    "verifier_lm_head.weight": ("verifier", "hidden"),
}
# The planner judges by the drafted probabilities; verifier_* are copies of the target's.
UNUSED = ("confidence_head.", "verifier_")
MAX_LAYERS = 64
MAX_TAPS = 64


class HeadSizes(NamedTuple):
    """What the tensors of a head tell: sizes (0 where there is nothing to tell), and its parts.

    `parts` are the names of all parameters, renamed; `taps` is the width of fc's input, `rank` that
    of DSpark's bias.
    """

    hidden: int
    taps: int
    queries: int
    keys: int
    mlp: int
    draft: int
    vocabulary: int
    head_dim: int
    n_layers: int
    parts: frozenset[str]
    rank: int = 0


def read_sizes(manifest: Manifest, dialect: Dialect) -> HeadSizes:
    """Check every tensor of a head against the parameters of `EagleHead`.

    Args:
        manifest: the tensors under their published names.
        dialect: whose head it is.

    Raises:
        CheckpointError: listing all tensors that are unknown, missing or misshapen.
    """
    found, problems = _by_parameter(manifest)
    n_layers = _count_layers(found)
    required, optional = expected_axes(dialect, found, n_layers)
    axes = required | optional
    problems += [
        f"unknown {quote(name)} {list(info.shape)}"
        for name, info in found.items()
        if name not in axes and name not in TABLES
    ]
    problems += [f"missing {name}" for name in required if name not in found]
    sizes: dict[str, int] = {}
    for name in [*axes, *TABLES]:
        if name in found:
            problems += _misfits(name, found[name], axes.get(name, (name,)), sizes)
    problems += _contradicting_norms(found, axes, sizes)
    if problems:
        raise CheckpointError(f"not a {dialect.label} as expected: {listed(problems, most=24)}")
    return HeadSizes(
        **{axis: sizes.get(axis, 0) for axis in HeadSizes._fields[:8]},
        n_layers=n_layers,
        parts=frozenset(found) & frozenset(axes),
        rank=sizes.get("rank", 0),
    )


def _by_parameter(manifest: Manifest) -> tuple[Manifest, list[str]]:
    """Return tensors by the names of parameters, and the problem of each name that comes twice."""
    found: Manifest = {}
    problems = []
    for published, info in manifest.items():
        name = parameter_name(published)
        if name in found:
            problems.append(f"{quote(published)} is a second {name}")
        found[name] = info
    return found, problems


def _contradicting_norms(
    found: Manifest, axes: dict[str, tuple[str, ...]], sizes: dict[str, int]
) -> list[str]:
    """Return what is wrong with the norms in front of fc: one for each tap, or one for all."""
    n_norms = sum(name.startswith("fc_norm.") for name in axes)
    problems = []
    if n_norms and n_norms * sizes.get("one tap", 0) != sizes.get("taps", 0):
        problems.append(f"{n_norms} norms of {sizes.get('one tap')} for fc's {sizes.get('taps')}")
    if n_norms and "input_norm.weight" in found:
        problems.append("input_norm and fc_norm exclude each other")
    return problems


def _count_layers(found: Manifest) -> int:
    """Return how many decoder layers are named, whatever the configuration claims."""
    layers = {match[1] for name in found if (match := re.match(r"layers\.(\d{1,3})\.", name))}
    n_layers = len(layers)
    if n_layers > MAX_LAYERS or layers != {str(i) for i in range(n_layers)}:
        raise CheckpointError(f"the head has the layers {listed(sorted(layers))}, not 0, 1, 2, ...")
    return max(n_layers, 1)


class ExpectedAxes(NamedTuple):
    """The axes of the parameters that must be there, and of those that may."""

    required: dict[str, tuple[str, ...]]
    optional: dict[str, tuple[str, ...]]


def expected_axes(dialect: Dialect, found: Manifest, n_layers: int) -> ExpectedAxes:
    """Return what a head of this publisher consists of, given which options it has."""
    # The first tensor with an axis defines its size: begin with one that has the hidden size.
    required = {"layers.0.self_attn.o_proj.weight": _LAYER["self_attn.o_proj.weight"]}
    optional = dict(_OPTIONS)
    if dialect.algorithm in BLOCKS:
        return _block_axes(found, n_layers)
    if dialect.algorithm == "eagle":
        required["fc.weight"] = ("hidden", "2 hidden")
    else:
        # Without a draft vocabulary the target's own output layer may do.
        may_lack = dialect.optional if set(TABLES) & set(found) else (*dialect.optional, _OUTPUT)
        for name, axes in _EAGLE3.items():
            (optional if name in may_lack else required)[name] = axes
        optional["input_norm.weight"] = ("taps",)
        n_norms = sum(bool(re.fullmatch(r"fc_norm\.\d{1,2}\.weight", name)) for name in found)
        required |= {f"fc_norm.{i}.weight": ("one tap",) for i in range(min(n_norms, MAX_TAPS))}
    if dialect.algorithm == "p-eagle":
        required["mask_hidden"] = ("one", "one", "taps")
        required["embed_tokens.weight"] = optional.pop("embed_tokens.weight")
    for i in range(n_layers):
        width = "2 hidden" if i == 0 and dialect.algorithm != "eagle" else "hidden"
        for name, axes in _layer(found).items():
            mine = tuple(width if axis == "input" else axis for axis in axes)
            required[f"layers.{i}.{name}"] = mine
        if i > 0:
            required[f"layers.{i}.input_layernorm.weight"] = ("hidden",)
    return ExpectedAxes(required, optional)


def _block_axes(found: Manifest, n_layers: int) -> ExpectedAxes:
    """Return what a block head consists of: ordinary layers, all alike."""
    required = {"layers.0.self_attn.o_proj.weight": _LAYER["self_attn.o_proj.weight"]} | _BLOCK
    for i in range(n_layers):
        for name, axes in {"input_layernorm.weight": ("hidden",), **_layer(found)}.items():
            mine = tuple("hidden" if axis == "input" else axis for axis in axes)
            required[f"layers.{i}.{name}"] = mine
    return ExpectedAxes(required, dict(_BLOCK_OPTIONS))


def _layer(found: Manifest) -> dict[str, tuple[str, ...]]:
    """Return the parameters of one layer: an option that any layer has, all must have."""
    parts = dict(_LAYER)
    for group in _LAYER_OPTIONS:
        if any(name.endswith(tuple(group)) for name in found if name.startswith("layers.")):
            parts |= group
    return parts


def _misfits(
    name: str, info: TensorInfo, axes: tuple[str, ...], sizes: dict[str, int]
) -> list[str]:
    """Return what is wrong with a tensor, and note the sizes of axes that it is the first with."""
    dtypes = TABLES.get(name, FLOATS)
    problems = []
    if info.dtype not in dtypes:
        problems.append(f"{name} has the type {info.dtype}, expected {' or '.join(dtypes)}")
    if len(info.shape) != len(axes):
        return [*problems, f"{name} has shape {list(info.shape)}, expected {len(axes)} axes"]
    for axis, size in zip(axes, info.shape, strict=True):
        sizes.setdefault(axis, 1 if axis == "one" else size)
        if axis == "hidden":
            sizes.setdefault("2 hidden", 2 * size)
    expected = [sizes[axis] for axis in axes]
    if list(info.shape) != expected or 0 in expected:
        problems.append(f"{name} has shape {list(info.shape)}, expected {expected}")
    return problems
