"""A target's tokenizer, read by mlx-lm's loader, with a decoder that fits its vocabulary.

Some files name a decoder of sentencepiece beside a byte-level vocabulary (Devstral): spaces would
come out as the letters that stand for them. The vocabulary decides.
"""

from pathlib import Path
from typing import Any

from mlx_lm.utils import load_tokenizer
from tokenizers import decoders, pre_tokenizers

_SPACE = "\u0120"  # how a byte-level vocabulary writes a space


def read_tokenizer(folder: Path, eos_token_ids: Any = None) -> Any:
    """Return mlx-lm's wrapper of a tokenizer; remote code is refused.

    Args:
        folder: the target.
        eos_token_ids: one or several, as the target's configuration has them.

    Raises:
        Exception: whatever mlx-lm and transformers raise for files that they cannot read.
    """
    tokenizer = load_tokenizer(folder, {"trust_remote_code": False}, eos_token_ids=eos_token_ids)
    mend_decoder(tokenizer)
    return tokenizer


def mend_decoder(tokenizer: Any) -> None:
    """Let a byte-level vocabulary be decoded as bytes, whatever decoder its file names."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    vocabulary = backend.get_vocab(with_added_tokens=False)
    if not set(pre_tokenizers.ByteLevel.alphabet()) <= set(vocabulary):
        return
    if _SPACE in tokenizer.decode([vocabulary[_SPACE]]):
        backend.decoder = decoders.ByteLevel()
