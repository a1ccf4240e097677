"""Targets converted to mlx-lm folders, by mlx-lm's own converter.

What is added to mlx-lm: it sees only files that were checked, PyTorch's are read without PyTorch,
no code in the folder is run or copied, and the result appears whole or not at all, once mlx-lm has
loaded it. What can be converted is decided in `mlx_lm_support.py`; no architecture is known here.
"""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from mlx_eagle.convert.check_result import check_logits, check_weights, short_forward
from mlx_eagle.convert.checkpoint import read_manifest, read_weights
from mlx_eagle.convert.mlx_lm_support import Source, check_source
from mlx_eagle.convert.quantization import DTYPES, Quantization, choose_quantization
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.atomic import new_folder
from mlx_eagle.files.folders import PICKLES, find_weights
from mlx_eagle.files.json_files import read_json
from mlx_eagle.files.plain_files import check_file
from mlx_eagle.files.quoting import one_line
from mlx_eagle.target.stage import link_weights, shard_name

# What a tokenizer, a chat template and a configuration are made of; code is not among it.
_COMPANIONS = ("*.json", "*.jsonl", "*.jinja", "*.txt", "*.tiktoken", "*.model")


def convert_target(
    source: Path,
    out: Path,
    quantization: Quantization | None = None,
    *,
    dtype: str | None = None,
) -> None:
    """Convert a Hugging Face target to a folder that mlx-lm loads.

    Sources that are quantized already: mlx-lm keeps AWQ, mxfp4, mxfp8, bitnet, ModelOpt and
    compressed-tensors weights packed as they are, where it has them for the architecture, and
    decodes fp8 for DeepSeek-V3, MiMo-V2 and MiniMax; the quantization that is asked for then holds
    for the rest. GPTQ and all others are refused, and so is what is in MLX's own format.

    Args:
        source: folder with `config.json`, tokenizer and weights, safetensors or PyTorch's.
        out: folder to create; it must not exist.
        quantization: what `choose_quantization` returns; None leaves the weights as they are.
        dtype: "float16", "bfloat16" or "float32" for everything that is not quantized; None for
            the type that the configuration names, or else that of the weights.

    Raises:
        CheckpointError: if the target is malformed, already converted, or unknown to mlx-lm.
        EagleError: if `out` exists, or there is no such type or quantization for this target.
    """
    if dtype not in (*DTYPES, None):
        raise EagleError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if quantization is not None:
        choose_quantization(quantization.mode, quantization.bits, quantization.group_size)
    checked = check_source(source)
    with new_folder(out) as folder:
        staged, converted = folder / "staged", folder / "converted"
        _stage(source, staged)
        with _mlx_lm_errors(checked, staged):
            _run_mlx_lm(staged, converted, quantization, dtype, checked.name)
        _check_quantized(converted, checked, quantization)
        if dtype is not None:
            _note_dtype(converted / "config.json", dtype)
        _keep_only(converted, staged)


def _keep_only(converted: Path, staged: Path) -> None:
    """Move what was converted one folder up, and remove what it was made from."""
    shutil.rmtree(staged)
    for item in sorted(converted.iterdir()):
        item.rename(converted.parent / item.name)
    converted.rmdir()


def _stage(source: Path, folder: Path) -> None:
    """Fill a folder with what mlx-lm may see: checked files, safetensors only, and no code."""
    folder.mkdir()
    files = find_weights(source)
    for number, file in enumerate(files, start=1):
        if file.suffix in PICKLES:
            place = folder / shard_name(number, len(files))
            mx.save_safetensors(str(place), read_weights(file), metadata={"format": "pt"})
        else:
            link_weights(file, number, len(files), folder)
    for pattern in _COMPANIONS:
        for file in source.glob(pattern):
            if not file.name.endswith(".index.json"):
                check_file(file)
                shutil.copyfile(file, folder / file.name)


def _run_mlx_lm(
    source: Path, out: Path, quantization: Quantization | None, dtype: str | None, name: str
) -> None:
    """Convert with the parts of mlx-lm's converter, from a model as `load` has it."""
    from mlx_lm.utils import load_tokenizer, quantize_model, save

    from mlx_eagle.target.load import load_network

    network, config, *_ = load_network(source)
    tokenizer = load_tokenizer(source, {"trust_remote_code": False})
    expected = short_forward(network, source)
    _cast(network, dtype or _type_of(config))
    if quantization is not None:
        bits, size, mode = quantization
        network, config = quantize_model(network, config, size, bits, mode=mode)
    save(out, source, network, tokenizer, config)
    check_weights(source, out, name)
    check_logits(expected, load_network(out).network, quantization, name)


def _type_of(config: dict[str, Any]) -> str | None:
    """Return the type of weights that a configuration names, as mlx-lm reads it."""
    text = config.get("text_config")
    return config.get("torch_dtype") or (text.get("dtype") if isinstance(text, dict) else None)


def _cast(network: nn.Module, dtype: str | None) -> None:
    """Let all weights have a type, but for those of which the model's class says otherwise."""
    if dtype not in DTYPES:
        return
    may_cast = getattr(network, "cast_predicate", lambda path: True)

    def cast(path: str, array: mx.array) -> mx.array:
        is_float = mx.issubdtype(array.dtype, mx.floating)
        return array.astype(getattr(mx, dtype)) if is_float and may_cast(path) else array

    network.update(tree_map_with_path(cast, network.parameters()))


@contextlib.contextmanager
def _mlx_lm_errors(checked: Source, staged: Path) -> Iterator[None]:
    """Send what mlx-lm prints to stderr, and make one line of whatever it raises."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except CheckpointError:
        raise
    except Exception as error:  # mlx-lm, transformers and the tokenizers share no error type
        text = f"{type(error).__name__}: {error}".replace(str(staged), checked.name)
        advice = f"; it is quantized as {checked.method}: convert its 16-bit original"
        raise CheckpointError(
            f"mlx-lm could not convert {checked.name}: {one_line(text)}"
            f"{advice if checked.method else ''}"
        ) from error


def _check_quantized(folder: Path, checked: Source, quantization: Quantization | None) -> None:
    """Refuse a result in which nothing is quantized although it was asked for."""
    if quantization is None or any(i.dtype == "U32" for i in read_manifest(folder).values()):
        return
    raise EagleError(
        f"no layer of {checked.name} can be quantized in groups of {quantization.group_size} "
        "weights: choose smaller groups, or no quantization"
    )


def _note_dtype(file: Path, dtype: str) -> None:
    """Let a configuration that names the type of its weights name the new one."""
    config = read_json(file)
    for part in (config, config.get("text_config")):
        if isinstance(part, dict):
            part.update({key: dtype for key in ("torch_dtype", "dtype") if key in part})
    file.write_text(json.dumps(config, indent=4))
