"""Fewer tokens to draft from, for a head that uses its target's output layer.

A multi-token prediction layer scores the whole vocabulary at every step, which for one of 248,320
tokens reads three times the bytes of the layer itself. Most drafts are of few tokens: with a table
of those alone the same rows of the target's output layer are gathered when it is loaded (FR-Spec,
arXiv 2502.14856). What is accepted stays the target's own choice.
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_eagle.convert.checkpoint import read_weights
from mlx_eagle.errors import EagleError
from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.json_files import read_json
from mlx_eagle.heads.config import ALGORITHMS
from mlx_eagle.heads.load import read_head_config
from mlx_eagle.target.tokenizer import read_tokenizer
from mlx_eagle.training.batch import Example
from mlx_eagle.training.texts.draft_vocabulary import count_tokens, draft_vocabulary

_TABLE = "draft_to_target"


def reduce_vocabulary(
    head: Path, target: Path, size: int, texts: Path | None = None
) -> dict[str, Any]:
    """Let a converted head draft from the most frequent tokens alone.

    Args:
        head: folder of a converted multi-token prediction layer; its files are replaced.
        target: folder of its target, of which the tokenizer is read.
        size: tokens to draft from.
        texts: a text file in which tokens are counted; None takes the first ones of the
            vocabulary, which most tokenizers order by frequency.

    Returns:
        The head's configuration.

    Raises:
        EagleError: if the head has an output layer of its own, or the text cannot be read.
    """
    config = read_head_config(head)
    if config["algorithm"] != "mtp" or config["own_lm_head"]:
        kind = ALGORITHMS.get(config["algorithm"], "head")
        raise EagleError(
            f"{head.name} is a {kind} with an output layer of its own or another draft vocabulary; "
            "--draft-vocab is for multi-token prediction layers that use their target's"
        )
    tokenizer = read_tokenizer(target, read_json(target / "config.json").get("eos_token_id"))
    n_tokens = config["target_vocab_size"]
    found = draft_vocabulary(count_tokens(_examples(tokenizer, texts), n_tokens), size, tokenizer)
    config["draft_vocab_size"] = len(found.ids)
    config.setdefault("origins", {})["draft_vocab_size"] = (
        f"the most frequent tokens of {texts.name}" if texts else "the tokenizer's first tokens"
    )
    weights = read_weights(head / "model.safetensors") | {_TABLE: mx.array(found.ids)}
    mx.eval(weights)
    with new_file(head / "model.safetensors") as partial:
        mx.save_safetensors(str(partial), weights, metadata={"format": "mlx"})
    with new_file(head / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return config


def _examples(tokenizer: Any, texts: Path | None) -> list[Example]:
    """Return a text as an example of which every token counts; nothing for no text."""
    if texts is None:
        return []
    try:
        tokens = np.array(tokenizer.encode(texts.read_text(encoding="utf-8")), dtype=np.int32)
    except (OSError, UnicodeDecodeError) as error:
        raise EagleError(f"cannot read {texts}: {error}") from error
    return [Example(tokens, np.ones(len(tokens), dtype=bool))]
