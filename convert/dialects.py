"""How publishers write their heads down: names of tensors, keys and flags of configurations.

A `Dialect` is a row of data for each publisher. Which dialect a folder speaks is decided in
`identify.py`, its shapes are read in `tensor_shapes.py`, and what follows for the forward pass is
decided in `rules.py`. A new publisher needs a row here and its sign in `identify.py`.
"""

import re
from typing import Literal, NamedTuple

# What trainers and exporters put in front of all names.
PREFIXES = ("model.", "eagle_module.", "draft_model.", "module.")

# Beginnings of published names, and ours. EAGLE-3's layer is `midlayer`; legacy SGLang names the
# norms of three taps by their depth.
_RENAMES = (
    (re.compile(r"^midlayer\.(?=\d+\.)"), "layers."),
    (re.compile(r"^midlayer\."), "layers.0."),
    (re.compile(r"^aux_norm_low\."), "fc_norm.0."),
    (re.compile(r"^aux_norm_mid\."), "fc_norm.1."),
    (re.compile(r"^aux_norm_high\."), "fc_norm.2."),
    # Megatron and SGLang call the first norm of later layers after that of the first layer.
    (re.compile(r"^(layers\.[1-9]\d*)\.hidden_norm\."), r"\1.input_layernorm."),
)

# Keys under which tap ids are written. These name the layers whose output is read ...
OUTPUT_KEYS = ("target_layer_ids", "aux_hidden_states_layer_ids")
# ... and this one boundaries at the top level, and either inside `eagle_config`.
BOUNDARY_KEY = "eagle_aux_hidden_state_layer_ids"
# The algorithms of heads that draft a block of tokens at once.
BLOCKS = ("dflash", "dspark")
# Keys under which the token is written that a P-EAGLE head reads for those it has not seen.
MASK_TOKEN_KEYS = ("mask_token_id", "pard_token", "ptd_token_id")


class Dialect(NamedTuple):
    """How one publisher's heads are to be read.

    Attributes:
        format: the name in a converted head's provenance.
        label: the name for people.
        algorithm: what the head computes, see `HeadConfig`; or "medusa", "mtp", or for heads that
            draft a block "dflash" or "dspark", which their tensors tell apart in the end.
        nested: the configuration key that holds the layer's own settings, or "".
        norm_before_residual: the flag where the configuration is silent.
        norm_output: what the key of this name means: "feedback" (the next step reads the normed
            output), "lm_head" (a norm stands before lm_head: EAGLE-3 always has one), or
            "nothing".
        trained_rope_theta: the base that training used whatever the configuration says, or None.
        llama4_interleaved: heads for Llama 4 rotate pairs of neighbouring dimensions.
        optional: parameters that heads of this publisher may lack; `lm_head` may lack in any, if
            it has no tables of a draft vocabulary either.
        doubted: facts that files of this publisher are known to get wrong.
        tap_offset: what is added to tap ids of a block head to make boundaries of them.
        root_predicts: a block's first row drafts a token, where the configuration is silent.
        window_from_root: windows of a block head are counted back from the root for all rows.
    """

    format: str
    label: str
    algorithm: Literal["eagle", "eagle3", "p-eagle", "medusa", "mtp", "dflash", "dspark"] = "eagle3"
    nested: str = ""
    norm_before_residual: bool = False
    norm_output: Literal["feedback", "lm_head", "nothing"] = "nothing"
    trained_rope_theta: float | None = None
    llama4_interleaved: bool = False
    optional: tuple[str, ...] = ()
    doubted: tuple[str, ...] = ()
    tap_offset: int = 1
    root_predicts: bool = False
    window_from_root: bool = False


SAFEAILAB = Dialect("safeailab-eagle3", "SafeAILab EAGLE-3 head")
SPECFORGE = Dialect(
    "specforge-eagle3",
    "SpecForge EAGLE-3 head",
    norm_output="lm_head",
    doubted=("taps", "rope_theta", "rope_scaling", "norm_output"),
)
SPECULATORS = Dialect(
    "speculators-eagle3",
    "speculators EAGLE-3 head",
    nested="transformer_layer_config",
    norm_before_residual=True,  # vLLM's reading of a missing key, which published heads rely on
    norm_output="feedback",
    optional=("lm_head.weight",),
    doubted=("norm_before_residual",),
)
SPECULATORS_PEAGLE = SPECULATORS._replace(
    format="speculators-peagle",
    label="speculators P-EAGLE head",
    algorithm="p-eagle",
    norm_before_residual=False,
)
MODELOPT = Dialect(
    "modelopt-eagle3",
    "NVIDIA ModelOpt EAGLE-3 head",
    norm_output="feedback",
    llama4_interleaved=True,
    optional=(
        "fc.weight",
        "layers.0.hidden_norm.weight",
        "layers.0.input_layernorm.weight",
        "norm.weight",
        "lm_head.weight",
    ),
    doubted=("taps", "rope_theta", "rope_scaling", "norm_before_residual", "double_norm"),
)
ANGELSLIM = Dialect(
    "angelslim-eagle3",
    "AngelSlim EAGLE-3 head",
    trained_rope_theta=10000.0,
    doubted=("rope_theta",),
)
DEEPSPEC = Dialect("deepspec-eagle3", "DeepSpec EAGLE-3 head")
EAGLE31 = Dialect("eagle3.1", "EAGLE-3.1 head", norm_output="feedback", doubted=("norm_output",))
UNNAMED = Dialect(
    "unnamed-eagle3",
    "EAGLE-3 head of an unnamed publisher",
    norm_output="feedback",
    doubted=("taps", "rope_theta", "norm_before_residual", "norm_output"),
)
EAGLE = Dialect("safeailab-eagle", "EAGLE-1, EAGLE-2 or HASS head", algorithm="eagle")
PEAGLE = MODELOPT._replace(
    format="p-eagle",
    label="P-EAGLE head",
    algorithm="p-eagle",
    llama4_interleaved=False,
    optional=("lm_head.weight",),
    doubted=("taps",),
)
MEDUSA = Dialect("medusa", "Medusa heads", algorithm="medusa")
MTP = Dialect("native-mtp", "native multi-token-prediction layer", algorithm="mtp")
DFLASH = Dialect(
    "z-lab-dflash", "DFlash block head", algorithm="dflash", doubted=("taps", "causal_layers")
)
DSPARK = DFLASH._replace(
    format="dspark", label="DSpark block head", algorithm="dspark", root_predicts=True
)
DEEPSPEC_BLOCK = DSPARK._replace(format="deepspec-block", label="DeepSpec block head")
SPECULATORS_DFLASH = DFLASH._replace(
    format="speculators-dflash",
    label="speculators DFlash block head",
    nested="transformer_layer_config",
    tap_offset=0,
    window_from_root=True,
)
SPECULATORS_DSPARK = SPECULATORS_DFLASH._replace(
    format="speculators-dspark",
    label="speculators DSpark block head",
    algorithm="dspark",
    root_predicts=True,
)


def parameter_name(name: str) -> str:
    """Return the parameter of `EagleHead`, or the table, that a published name stands for."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    for theirs, ours in _RENAMES:
        name = theirs.sub(ours, name)
    return name
