"""Which keys of a configuration mlx-lm's class for a target reads, without importing it.

The source of its module is parsed: importing mlx-lm takes seconds, and `inspect` shall not.
"""

import ast
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Keys that change what a model answers. Of others it does not matter whether they are read.
_MATTERING = (
    *("rope_scaling", "rope_theta", "partial_rotary_factor", "rotary_pct"),
    *("sliding_window", "attention_chunk_size", "head_dim", "attention_bias", "mlp_bias"),
    *("final_logit_softcapping", "attn_logit_softcapping", "query_pre_attn_scalar"),
    *("logit_scale", "logits_scaling", "attention_multiplier", "embedding_multiplier"),
    *("residual_multiplier", "num_experts_per_tok", "norm_topk_prob", "use_qkv_bias", "alibi"),
)


def unread_keys(config: dict[str, Any]) -> list[str]:
    """Return the keys of a target that matter and that mlx-lm's class does not read.

    Args:
        config: of the language model; `model_type` names the class.

    Returns:
        Names, sorted; none where the class is not found or reads its configuration in another way.
    """
    fields = _fields(config.get("model_type"))
    if not fields:
        return []
    return sorted(key for key in _MATTERING if config.get(key) and key not in fields)


def _fields(model_type: Any) -> set[str]:
    """Return the fields of the class that mlx-lm reads a configuration into."""
    spec = find_spec("mlx_lm")
    if spec is None or spec.origin is None or not isinstance(model_type, str):
        return set()
    folder = Path(spec.origin).parent
    name = _other_names(folder / "utils.py").get(model_type, model_type)
    file = folder / "models" / f"{name}.py"
    if not name.replace("-", "_").isidentifier() or not file.is_file():
        return set()
    classes = (part for part in ast.parse(file.read_text()).body if isinstance(part, ast.ClassDef))
    arguments = next((part for part in classes if part.name == "ModelArgs"), None)
    if arguments is None:
        return set()
    lines = (line for line in arguments.body if isinstance(line, ast.AnnAssign))
    return {line.target.id for line in lines if isinstance(line.target, ast.Name)}


def _other_names(file: Path) -> dict[str, str]:
    """Return which types of models mlx-lm runs by the class of another."""
    for line in ast.parse(file.read_text()).body:
        names = [part.id for part in getattr(line, "targets", []) if isinstance(part, ast.Name)]
        if isinstance(line, ast.Assign) and names == ["MODEL_REMAPPING"]:
            return dict(ast.literal_eval(line.value))
    return {}
