"""Metal code as it is handed to MLX, which copies and compares the whole text at every call."""

import re

# Words of Metal, and names that MLX or the launch gives; all others are ours to shorten.
_KEPT = re.compile(
    r"(simd|thread|mem_|make_filled|atomic)\w*|\w+_(shape|strides|ndim|in_grid)|(b?float|half)\w*"
    r"|u?(int|short|char|long)\w*|[a-z]\d+|const|constexpr|constant|device|using|template|typename"
    r"|struct|static|inline|void|bool|for|if|else|return|true|false|define|_Pragma|clang|loop"
    r"|unroll|full|metal|fast|exp2?|fma|min|max|vec|size_t|as_type|uchar"
)
_WORD = re.compile(r"(?<!\w)[A-Za-z_]\w*")
# Spaces around these separate nothing; those between two signs do.
_SPACED = re.compile(r"\s*([^\w\s#+\-\"]|[+-]=)\s*|(?<=[\w)\]])\s+([+-])\s+(?=[\w(])")


def bare(code: str) -> str:
    """Return code without comments and indentation; lines keep their numbers."""
    return "\n".join(line.split("//")[0].strip() for line in code.split("\n"))


def shortened(code: str, names: dict[str, str]) -> str:
    """Return bare code with short names and no needless spaces; lines keep their numbers."""
    lines = []
    for line in bare(code).split("\n"):
        renamed = _WORD.sub(lambda word: names.get(word[0], word[0]), line)
        # A macro's name ends at a space.
        lines.append(renamed if renamed.startswith("#") else _SPACED.sub(_joined, renamed))
    return "\n".join(lines)


def _joined(spaced: re.Match[str]) -> str:
    return spaced[1] or spaced[2]


def short_names(*codes: str) -> dict[str, str]:
    """Return a short name for every name of three letters or more that is ours in these texts."""
    words = {word for code in codes for word in _WORD.findall(bare(code))}
    ours = sorted(word for word in words if len(word) > 2 and not _KEPT.fullmatch(word))
    return {word: f"Z{i}" for i, word in enumerate(ours)}
