"""Whether mlx-lm can run a target, decided before anything is converted.

mlx-lm itself is asked, by its modules and its tables. Written down here is only what it would
convert wrongly without an error, or end the program for.
"""

import contextlib
import io
import pkgutil
from difflib import get_close_matches
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple

from mlx_eagle.convert.checkpoint import read_manifest
from mlx_eagle.convert.identify import identify_kind
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.folders import source_name
from mlx_eagle.files.json_files import language_config, read_json
from mlx_eagle.files.quoting import quote_value
from mlx_eagle.files.safetensors import TensorInfo

# Methods of quantization that mlx-lm's loader reads, each for some architectures at least.
_METHODS = ("awq", "bitnet", "compressed-tensors", "fp8", "modelopt", "mxfp4", "mxfp8")

# The modules of mlx-lm that decode float8, with a scale for each block of 128 x 128. Another that
# names such scales, ministral3, multiplies them by the undecoded bytes; most know none.
_FLOAT8_MODULES = ("deepseek_v3", "deepseek_v32", "mimo_v2_flash", "minimax")

_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")


class Source(NamedTuple):
    """A target that mlx-lm should be able to read.

    Attributes:
        name: what to call it.
        method: how its weights are quantized already, or nothing.
    """

    name: str
    method: str


def check_source(folder: Path) -> Source:
    """Return a folder's target once nothing speaks against its conversion.

    Raises:
        CheckpointError: if it is malformed, a head, needs code of its own, is unknown to mlx-lm,
            or quantized in a way that mlx-lm does not read.
    """
    config, manifest = read_json(folder / "config.json"), read_manifest(folder)
    name = source_name(folder)
    kind = identify_kind(config, manifest)
    if kind.role == "head":
        raise CheckpointError(f"{name} is a {kind.label}: to convert it, name its target as well")
    if "quantization" in config:
        raise CheckpointError(f"{name} is already quantized for MLX: use it as it is")
    if "model_file" in config:
        raise CheckpointError(f"{name} brings its own model code, which is never run")
    _check_type(config.get("model_type"), name)
    _check_layers(config, manifest)
    return Source(name, _check_method(_settings(folder, config), config, manifest, name))


def runnable_types() -> list[str]:
    """Return the model types that the installed mlx-lm runs."""
    from mlx_lm import models
    from mlx_lm.utils import MODEL_REMAPPING

    names = {module.name for module in pkgutil.iter_modules(models.__path__)}
    return sorted(name for name in names | set(MODEL_REMAPPING) if _is_runnable(name))


def _is_runnable(model_type: str) -> bool:
    """Say whether mlx-lm implements a type of model, and can import what that needs."""
    from mlx_lm.utils import MODEL_REMAPPING

    name = MODEL_REMAPPING.get(model_type, model_type)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            module = import_module(f"mlx_lm.models.{name}")
    except (ImportError, SystemExit):  # olmo exits where a package of its own is missing
        return False
    return hasattr(module, "Model") and hasattr(module, "ModelArgs")


def _check_type(model_type: Any, name: str) -> None:
    """Refuse a type of model that mlx-lm cannot run; the error names the closest ones."""
    is_name = isinstance(model_type, str) and model_type.replace("-", "_").isidentifier()
    if is_name and _is_runnable(model_type):
        return
    known = runnable_types()
    close = get_close_matches(str(model_type).lower()[:80], known, n=3) or ["llama", "qwen3"]
    raise CheckpointError(
        f"mlx-lm has no model of the type {quote_value(model_type)}, which {name} is: version "
        f"{metadata.version('mlx-lm')} runs {len(known)} types, such as {', '.join(close)}; a "
        "newer one may run it"
    )


def _check_layers(config: dict[str, Any], manifest: dict[str, TensorInfo]) -> None:
    """Refuse more layers than there are tensors: mlx-lm would build them all before it looked."""
    language = language_config(config)
    for key in _LAYER_COUNTS:
        value = language.get(key)
        if type(value) is int and value > len(manifest):
            raise CheckpointError(
                f"config.json: {key} is {quote_value(value)}, and there are {len(manifest)} tensors"
            )


def _settings(folder: Path, config: dict[str, Any]) -> Any:
    """Return how weights say they are quantized, from wherever mlx-lm would take it."""
    for part in (config, config.get("text_config")):
        if isinstance(part, dict) and "quantization_config" in part:
            return part["quantization_config"]
    file = folder / "hf_quant_config.json"
    return read_json(file) if file.exists() else None


def _check_method(
    settings: Any, config: dict[str, Any], manifest: dict[str, TensorInfo], name: str
) -> str:
    """Return the method by which weights are quantized, or nothing; refuse what is not read."""
    if not settings:
        if any(info.dtype.startswith("F8") for info in manifest.values()):
            raise CheckpointError(f"{name} has float8 weights, and no quantization_config for them")
        return ""
    keys = settings if isinstance(settings, dict) else {}
    method = keys.get("quant_method")
    if method is None and {"bits", "group_size"} <= set(keys):
        raise CheckpointError(f"{name} is already quantized for MLX: use it as it is")
    if method not in _METHODS:
        raise CheckpointError(
            f"{name} is quantized by the method {quote_value(method)}, of which mlx-lm reads only "
            f"{', '.join(_METHODS)}: convert its 16-bit original"
        )
    if method == "fp8" and not _reads_float8(keys, config):
        raise CheckpointError(
            f"{name} is quantized by the method 'fp8', which mlx-lm decodes for "
            f"{', '.join(_FLOAT8_MODULES)}, in blocks of 128 x 128, and not for "
            f"{quote_value(config['model_type'])} with "
            f"{quote_value(str(keys.get('weight_block_size')))}: convert its 16-bit original"
        )
    return str(method)


def _reads_float8(settings: dict[str, Any], config: dict[str, Any]) -> bool:
    """Say whether mlx-lm decodes these float8 weights, or keeps them as mxfp8."""
    from mlx_lm.utils import MODEL_REMAPPING

    model_type, block = config["model_type"], settings.get("weight_block_size")
    if block == [32, 32]:
        return settings.get("scale_fmt") == "ue8m0"
    is_decoded = MODEL_REMAPPING.get(model_type, model_type) in _FLOAT8_MODULES
    return is_decoded and block == [128, 128]
