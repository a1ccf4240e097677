"""A GGUF file becomes a folder that mlx-lm loads: weights, configuration and tokenizer.

Nothing in the file is run; the result appears whole or not at all, once mlx-lm has loaded it and
answered with finite numbers.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.convert.check_result import short_forward
from mlx_eagle.convert.gguf.config import make_config
from mlx_eagle.convert.gguf.families import Family, find_family
from mlx_eagle.convert.gguf.metadata import Metadata
from mlx_eagle.convert.gguf.names import name_tensors
from mlx_eagle.convert.gguf.precision import DTYPES, choose_dtype
from mlx_eagle.convert.gguf.reader import GGUF, read_gguf
from mlx_eagle.convert.gguf.report import write_report
from mlx_eagle.convert.gguf.source_weights import Weight, list_weights
from mlx_eagle.convert.gguf.tokenizer import write_tokenizer
from mlx_eagle.convert.gguf.vocabulary import Vocabulary, read_vocabulary
from mlx_eagle.convert.gguf.write import Progress, Row, quantization_of, write_weights
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.atomic import new_folder
from mlx_eagle.files.quoting import one_line

# Another one for every change of what a conversion writes: those in caches are made again then.
VERSION = 1


def convert_gguf(
    file: Path, out: Path, *, dtype: str | None = None, progress: Progress | None = None
) -> list[Row]:
    """Convert a GGUF file to a folder that mlx-lm loads.

    Args:
        file: the GGUF file.
        out: folder to create; it must not exist.
        dtype: "float16", "bfloat16" or "float32" for everything that is not quantized, scales of
            what is among it; None for the smallest in which all is as it is in the file.
        progress: called with bytes of the file that are done, and all.

    Returns:
        What became of each tensor.

    Raises:
        CheckpointError: if the file is malformed, or of a kind that is not known.
        EagleError: if `out` exists, or there is no such type.
    """
    if dtype not in (*DTYPES, None):
        raise EagleError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    plan = _plan(read_gguf(file))
    name = dtype or choose_dtype(plan.weights, may_be_half=not plan.family.outgrows_half)
    with new_folder(out) as folder:
        length = plan.config["max_position_embeddings"]
        write_tokenizer(plan.metadata, plan.vocabulary, folder, max_length=length)
        rows = write_weights(plan.weights, folder, DTYPES[name], progress or _silent)
        _write_config(plan, rows, name, folder)
        write_report(rows, file.name, folder)
        _check_result(folder, file.name)
    return rows


class _Plan(NamedTuple):
    """What a file says, before any of its weights is read."""

    family: Family
    metadata: Metadata
    vocabulary: Vocabulary
    config: dict[str, Any]
    weights: list[Weight]


def _plan(gguf: GGUF) -> _Plan:
    """Return what is to be written."""
    try:
        family, metadata = find_family(gguf)
        config = make_config(gguf, family, metadata)
        names = name_tensors(gguf, family, config["num_hidden_layers"])
        vocabulary = read_vocabulary(metadata, config["vocab_size"])
        weights = list_weights(gguf, family, names, config)
        return _Plan(family, metadata, vocabulary, config, weights)
    except CheckpointError as error:
        about = "" if gguf.name in str(error) else f"{gguf.name}: "
        raise CheckpointError(f"{about}{error}") from error


def _write_config(plan: _Plan, rows: list[Row], dtype: str, folder: Path) -> None:
    """Write config.json, with the tokens that begin a text and end it."""
    roles, endings = plan.vocabulary.roles, plan.vocabulary.endings
    config = plan.config | {"torch_dtype": dtype}
    config |= {f"{role}_token_id": roles[role] for role in ("bos", "pad") if role in roles}
    if endings:
        config["eos_token_id"] = endings if len(endings) > 1 else endings[0]
    quantization = quantization_of(rows)
    if quantization is not None:  # stock mlx-lm writes it under both names
        config |= {"quantization": quantization, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def _check_result(folder: Path, name: str) -> None:
    """Refuse a result that mlx-lm does not load or that does not compute finite numbers."""
    from mlx_eagle.target.load import load_network

    try:
        with contextlib.redirect_stdout(sys.stderr):
            network = load_network(folder).network
            if mx.default_device() == mx.cpu:  # where 16 bits are slow, and targets run in 32
                network.set_dtype(mx.float32)
            logits = short_forward(network, folder)
    except EagleError:
        raise
    except Exception as error:  # mlx-lm raises whatever its model classes do
        text = one_line(f"{type(error).__name__}: {error}".replace(str(folder), name))
        raise CheckpointError(f"{name} is converted, and mlx-lm cannot load it: {text}") from error
    if logits is not None and not mx.isfinite(logits).all().item():
        raise CheckpointError(f"{name} computes numbers that are not finite: the file is damaged")


def _silent(done: int, total: int) -> None:
    """Report nothing."""
