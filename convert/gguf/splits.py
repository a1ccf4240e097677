"""How byte-level tokenizers cut a text into words before they merge, by llama.cpp's names for it.

`tokenizer.ggml.pre` names the way; its patterns are those of the models' own tokenizer.json files.
A name that is not here is refused: with other words a model reads other tokens, and nobody sees why
its answers are worse.
"""

from typing import NamedTuple

from tokenizers import Regex, normalizers, pre_tokenizers

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote

_GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"  # and what is left
)
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_LLAMA3 = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_PATHS = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    f"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*" + r"|\p{N}" + _PATHS  # a digit each
)
_GPT4O = (
    f"{_FIRST}{_UPPER}*{_LOWER}+{_SUFFIXES}?|{_FIRST}{_UPPER}+{_LOWER}*{_SUFFIXES}?"
    + r"|\p{N}{1,3}"
    + _PATHS
)
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


class Split(NamedTuple):
    """A way of cutting.

    Attributes:
        patterns: each cuts what the one before has left.
        takes_whole_words: a word that is a token becomes it, whatever the merges say.
        begins: a text begins with a token of its own where the file does not say.
        composes: characters are composed first (NFC).
    """

    patterns: tuple[str, ...]
    takes_whole_words: bool = False
    begins: bool = False
    composes: bool = False


_DIGITS = Split((r"\p{N}", _GPT2))
_LLAMA = Split((_LLAMA3,), takes_whole_words=True, begins=True)
SPLITS = {
    "default": Split(_DEFAULT),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "gigachat", "mellum"), Split((_GPT2,))),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "midm-2.0"), _LLAMA),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Split((_LLAMA3,))),
    "qwen2": Split((_QWEN,), composes=True),
    **dict.fromkeys(("deepseek-r1-qwen", "stablelm2", "megrez", "kormo"), Split((_QWEN,))),
    "tekken": Split((_TEKKEN,), takes_whole_words=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), Split((_GPT4O,))),
}


def find_split(name: str) -> Split:
    """Return how a text is cut, by llama.cpp's name of it.

    Raises:
        CheckpointError: if the name is not known.
    """
    if name not in SPLITS:
        raise CheckpointError(
            f"its tokenizer cuts text as {quote(name)}, which is not known; those that are known "
            f"are {', '.join(SPLITS)}"
        )
    return SPLITS[name]


def pre_tokenizer(split: Split) -> pre_tokenizers.PreTokenizer:
    """Return what cuts a text and writes its bytes as letters."""
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns]
    return pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def normalizer(split: Split) -> normalizers.Normalizer | None:
    """Return what is done to a text before it is cut; None for nothing."""
    return normalizers.NFC() if split.composes else None
