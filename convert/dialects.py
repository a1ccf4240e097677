"""What a folder is, and how the publishers of EAGLE-3 heads name things.

`recognise` decides from the tensors' names and shapes, and from the configuration only where
they leave a choice: architectures in published configurations are often wrong. A `Dialect` is one
publisher's key table. `measure` compares tensors, once renamed, with the parameters of
`Eagle3Head` and derives every dimension from them. No weights are read here.

Only SafeAILab's EAGLE-3 layout can be converted so far; the other kinds are known by name, to be
refused by name.
"""

import re
from typing import Any, Literal, NamedTuple

from mlx_eagle.convert.opcodes import quote
from mlx_eagle.convert.pickles import TensorInfo
from mlx_eagle.errors import CheckpointError

Manifest = dict[str, TensorInfo]

# The `model_type` of converted heads: equal to MODEL_TYPE of mlx_eagle.head, which takes seconds
# to import because of mlx-lm.
CONVERTED_HEAD = "mlx_eagle_head"


class Dialect(NamedTuple):
    """How one publisher names the parameters of an EAGLE-3 head.

    `prefixes` are dropped from names, `renames` replace their beginnings by ours.
    """

    format: str
    label: str
    prefixes: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]


SAFEAILAB = Dialect(
    format="safeailab-eagle3",
    label="SafeAILab EAGLE-3 head",
    prefixes=("model.", "eagle_module.", "draft_model.", "module."),
    renames=(("midlayer.", "layers.0."),),
)


class Kind(NamedTuple):
    """What a folder is: its label, its role, and the dialect if it is a head that can be read."""

    label: str
    role: Literal["head", "target"]
    dialect: Dialect | None = None


# The parameters of Eagle3Head and their axes. The first tensor with an axis defines its size.
AXES: dict[str, tuple[str, ...]] = {
    "norm.weight": ("hidden",),
    "fc.weight": ("hidden", "taps"),
    "layers.0.hidden_norm.weight": ("hidden",),
    "layers.0.input_layernorm.weight": ("hidden",),
    "layers.0.post_attention_layernorm.weight": ("hidden",),
    "layers.0.self_attn.q_proj.weight": ("queries", "2 hidden"),
    "layers.0.self_attn.k_proj.weight": ("keys", "2 hidden"),
    "layers.0.self_attn.v_proj.weight": ("keys", "2 hidden"),
    "layers.0.self_attn.o_proj.weight": ("hidden", "queries"),
    "layers.0.mlp.gate_proj.weight": ("mlp", "hidden"),
    "layers.0.mlp.up_proj.weight": ("mlp", "hidden"),
    "layers.0.mlp.down_proj.weight": ("hidden", "mlp"),
    "lm_head.weight": ("draft", "hidden"),
}

FLOATS = ("F16", "BF16", "F32")

# The tables of the draft vocabulary, which are not parameters, and their types.
TABLES = {"d2t": ("I64", "I32"), "t2d": ("BOOL",)}


class Widths(NamedTuple):
    """The sizes that the tensors of a head have: all that shapes can tell."""

    hidden: int
    taps: int
    queries: int
    keys: int
    mlp: int
    draft: int


def recognise(config: dict[str, Any], manifest: Manifest) -> Kind:
    """Return what a folder with this configuration and these tensors is."""
    if config.get("model_type") == CONVERTED_HEAD:
        return Kind("converted EAGLE-3 head", "head")
    names = {rename(name, SAFEAILAB) for name in manifest}
    if other := _other_drafter(config, names):
        return Kind(other, "head")
    has_midlayer = any("midlayer." in name for name in manifest)
    if not has_midlayer and not names & {"fc.weight", "layers.0.hidden_norm.weight"}:
        return Kind("MLX target" if "quantization" in config else "Hugging Face target", "target")
    if variant := _other_eagle(config, names, manifest):
        return Kind(variant, "head")
    return Kind(SAFEAILAB.label, "head", SAFEAILAB)


def _other_drafter(config: dict[str, Any], names: set[str]) -> str | None:
    """Return the label of a drafter that announces itself and is not a plain EAGLE head."""
    architectures = str(config.get("architectures"))
    if "speculators_model_type" in config:
        return f"speculators head ({quote(config['speculators_model_type'])})"
    deepspec_keys = {"ttt_length", "target_layer_ids", "num_target_layers"}
    if re.search("(Qwen3|Gemma4)Eagle3Model", architectures) or deepspec_keys <= set(config):
        return "DeepSpec EAGLE-3 head"
    if "dflash_config" in config or re.search("DFlash|DSpark|Domino", architectures):
        return "block-diffusion drafter (DFlash, DSpark or Domino)"
    if "mask_hidden" in names:
        return "P-EAGLE head"
    medusa = r"medusa_heads?\.|lm_heads\.|\d+\.\d+\.linear\.weight$"
    if "medusa_num_heads" in config or any(re.match(medusa, name) for name in names):
        return "Medusa head"
    return None


def _other_eagle(config: dict[str, Any], names: set[str], manifest: Manifest) -> str | None:
    """Return the label of an EAGLE head that is not SafeAILab's EAGLE-3, or None."""
    shapes = {rename(name, SAFEAILAB): info.shape for name, info in manifest.items()}
    if any("kv_a_proj_with_mqa" in name or "q_a_proj" in name for name in names):
        return "EAGLE-3 head with multi-head latent attention"
    fc, q_proj = shapes.get("fc.weight", ()), shapes.get("layers.0.self_attn.q_proj.weight", ())
    if "block_size" in config:
        return "block-diffusion drafter (DFlash, DSpark or Domino)"
    if len(fc) == len(q_proj) == 2 and fc[1] == 2 * fc[0] and q_proj[1] == fc[0]:
        return "EAGLE-1, EAGLE-2 or HASS head"
    if "eagle_config" in config:
        return "ModelOpt or SpecForge EAGLE-3 head"
    if "aux_hidden_states_layer_ids" in config:
        return "AngelSlim EAGLE-3 head"
    if "eagle_aux_hidden_state_layer_ids" in config:
        return "EAGLE-3 head with its own choice of taps"
    flags = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "use_aux_norm")
    if set_flags := [flag for flag in flags if config.get(flag)]:
        return f"EAGLE-3 variant with {', '.join(set_flags)}"
    if "embed_tokens.weight" in names:
        return "EAGLE-3 head with its own embedding"
    if not any("midlayer." in name for name in manifest):
        return "EAGLE head of an unknown publisher"
    return None


def rename(name: str, dialect: Dialect) -> str:
    """Return the parameter of `Eagle3Head`, or the table, that a published name stands for."""
    for prefix in dialect.prefixes:
        name = name.removeprefix(prefix)
    for theirs, ours in dialect.renames:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name


def measure(manifest: Manifest, dialect: Dialect) -> Widths:
    """Check every tensor of a head against the parameters of `Eagle3Head`.

    Args:
        manifest: the tensors under their published names.
        dialect: how these names are to be read.

    Raises:
        CheckpointError: listing all tensors that are unknown, missing or misshapen.
    """
    found: Manifest = {}
    problems = []
    for published, info in manifest.items():
        name = rename(published, dialect)
        if name not in AXES and name not in TABLES:
            problems.append(f"unknown {quote(published)} {list(info.shape)}")
        elif name in found:
            problems.append(f"{quote(published)} is a second {name}")
        found[name] = info
    problems += [f"missing {name}" for name in AXES if name not in found]
    sizes: dict[str, int] = {}
    for name in [*AXES, *TABLES]:
        if name in found:
            problems += _misfits(name, found[name], sizes)
    if problems:
        raise CheckpointError(f"not a {dialect.label} as expected: {'; '.join(problems)}")
    return Widths(*(sizes[axis] for axis in Widths._fields))


def _misfits(name: str, info: TensorInfo, sizes: dict[str, int]) -> list[str]:
    """Return what is wrong with a tensor, and note the sizes of axes that it is the first with."""
    dtypes = TABLES.get(name, FLOATS)
    problems = []
    if info.dtype not in dtypes:
        problems.append(f"{name} has the type {info.dtype}, expected {' or '.join(dtypes)}")
    axes = AXES.get(name, (name,))
    if len(info.shape) != len(axes):
        return [*problems, f"{name} has shape {list(info.shape)}, expected {len(axes)} axes"]
    for axis, size in zip(axes, info.shape, strict=True):
        sizes.setdefault(axis, size)
        if axis == "hidden":
            sizes.setdefault("2 hidden", 2 * size)
    expected = [sizes[axis] for axis in axes]
    if list(info.shape) != expected or 0 in expected:
        problems.append(f"{name} has shape {list(info.shape)}, expected {expected}")
    return problems
