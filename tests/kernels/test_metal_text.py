"""Metal code made short: the same tokens with other names."""

import re

from mlx_eagle.kernels.few_rows import BODY, HEADER, text
from mlx_eagle.kernels.metal_text import bare, short_names, shortened


def tokens(code: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", bare(code))


def test_only_names_and_spaces_change() -> None:
    names = short_names(text(HEADER), text(BODY))
    for code in (text(HEADER), text(BODY)):
        short = shortened(code, names)
        assert tokens(short) == [names.get(token, token) for token in tokens(code)]
        assert short.count("\n") == code.count("\n")
        assert len(short) < 0.6 * len(code)


def test_short_names_are_nobody_elses() -> None:
    names = short_names(text(HEADER), text(BODY))
    assert len(set(names.values())) == len(names)
    assert not set(names.values()) & set(tokens(text(HEADER)) + tokens(text(BODY)))
    assert not {"simdgroup_multiply_accumulate", "x_shape", "w0", "y0", "metal"} & set(names)


def test_signs_stay_apart_and_macros_keep_the_end_of_their_names() -> None:
    assert shortened("a = b - -c + d; // why", {}) == "a=b - -c+d;"
    assert shortened("#define LONG_NAME (x)", {"LONG_NAME": "Z0"}) == "#define Z0 (x)"
    assert shortened("x = 0x6400u + bits;", {"x6400u": "Z0", "bits": "Z1"}) == "x=0x6400u+Z1;"
