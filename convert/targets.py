"""Targets turned into mlx-lm folders, by mlx-lm's own converter.

What is added to mlx-lm: weight files are checked before they are read, PyTorch's `.bin` files are
read without PyTorch, no code in the folder is run or copied, and the result appears whole or not
at all. Models that mlx-lm cannot run are refused; nothing here knows an architecture.
"""

import contextlib
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.convert.checkpoint import (
    find_weights,
    hash_file,
    language_config,
    quote_value,
    read_count,
    read_header,
    read_json,
    read_manifest,
    read_weights,
    source_name,
)
from mlx_eagle.convert.dialects import recognise
from mlx_eagle.convert.write import new_folder
from mlx_eagle.errors import CheckpointError, EagleError

# What a tokenizer and a chat template are made of.
_COMPANIONS = ("*.json", "*.jinja", "*.txt", "*.tiktoken", "tokenizer.model")

# What mlx-lm and transformers raise for a folder that they cannot use.
_LIBRARY_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OSError,
    RuntimeError,
    ImportError,
)


class TargetFacts(NamedTuple):
    """What a head must know about its target, and what identifies the target's configuration."""

    name: str
    model_type: str
    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    config_sha256: str


def read_facts(folder: Path) -> TargetFacts:
    """Return the facts in a target's `config.json`, Hugging Face's or mlx-lm's.

    Raises:
        CheckpointError: if it is missing, malformed or not that of a target.
    """
    config = read_json(folder / "config.json")
    name = source_name(folder)
    if "draft_vocab_size" in config or "speculators_model_type" in config:
        raise CheckpointError(f"{name} is a draft head, not a target")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(f"{name}: config.json has no model_type")
    language = language_config(config)
    return TargetFacts(
        name=name,
        model_type=model_type,
        num_hidden_layers=read_count(language, "num_hidden_layers"),
        hidden_size=read_count(language, "hidden_size"),
        vocab_size=read_count(language, "vocab_size"),
        config_sha256=hash_file(folder / "config.json"),
    )


def convert_target(source: Path, out: Path, *, bits: int | None = 4, group_size: int = 64) -> None:
    """Convert a Hugging Face target to a folder that mlx-lm loads.

    Args:
        source: folder with `config.json`, tokenizer and weights, safetensors or `.bin`.
        out: folder to create; it must not exist.
        bits: 4 or 8 to quantize, None to keep the type that the configuration names.
        group_size: weights that share a scale when quantized.

    Raises:
        CheckpointError: if the target is malformed, already converted, or unknown to mlx-lm.
        EagleError: if `out` exists, or there is no such quantization.
    """
    if bits not in (4, 8, None) or group_size not in (32, 64, 128):
        raise EagleError(f"{bits} bits in groups of {group_size}: use 4 or 8 bits, 32, 64 or 128")
    _refuse_others(source)
    with new_folder(out) as folder:
        checked = source
        if find_weights(source)[0].suffix == ".bin":
            checked = folder / "safetensors"
            _rewrite(source, checked)
        _run_mlx_lm(checked, folder / "converted", bits, group_size)
        if checked is not source:
            shutil.rmtree(checked)
        for code in (folder / "converted").glob("*.py"):
            code.unlink()
        for item in sorted((folder / "converted").iterdir()):
            item.rename(folder / item.name)
        (folder / "converted").rmdir()


def _refuse_others(source: Path) -> None:
    """Refuse what is not a target, needs code of its own, is quantized or unknown to mlx-lm."""
    config, name = read_json(source / "config.json"), source_name(source)
    kind = recognise(config, read_manifest(source))
    if kind.role == "head":
        raise CheckpointError(f"{name} is a {kind.label}: to convert it, name its target as well")
    if "quantization" in config:
        raise CheckpointError(f"{name} is already quantized for MLX: use it as it is")
    if "model_file" in config:
        raise CheckpointError(f"{name} brings its own model code, which is never run")
    for file in sorted(source.glob("model*.safetensors")):  # all that mlx-lm will load
        read_header(file)
    if not _is_known(config):
        raise CheckpointError(
            f"mlx-lm has no model of the type {quote_value(config.get('model_type'))}, which "
            f"{name} is"
        )


def _is_known(config: dict[str, Any]) -> bool:
    """Say whether mlx-lm implements the type of a model."""
    from mlx_lm.utils import MODEL_REMAPPING

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type.replace("-", "_").isidentifier():
        return False
    try:
        module = import_module(f"mlx_lm.models.{MODEL_REMAPPING.get(model_type, model_type)}")
    except ImportError:
        return False
    return hasattr(module, "Model") and hasattr(module, "ModelArgs")


def _rewrite(source: Path, folder: Path) -> None:
    """Write a `.bin` target as safetensors, one file for each, beside copies of its tokenizer."""
    folder.mkdir()
    files = find_weights(source)
    for number, file in enumerate(files, start=1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        mx.save_safetensors(str(folder / name), read_weights(file), metadata={"format": "pt"})
    for pattern in _COMPANIONS:
        for file in source.glob(pattern):
            if not file.name.endswith(".index.json"):
                shutil.copy(file, folder)


def _run_mlx_lm(source: Path, out: Path, bits: int | None, group_size: int) -> None:
    """Convert with mlx-lm; what it prints goes to stderr, what it raises becomes one error."""
    from mlx_lm.convert import convert

    try:
        with contextlib.redirect_stdout(sys.stderr):
            convert(
                str(source),
                str(out),
                quantize=bits is not None,
                q_bits=bits,
                q_group_size=group_size,
                trust_remote_code=False,
            )
    except _LIBRARY_ERRORS as error:
        raise CheckpointError(f"mlx-lm could not convert {source_name(source)}: {error}") from error
