"""Descriptions of options: what values may be, complete, and read without MLX."""

import subprocess
import sys
from typing import Any

import pytest

from mlx_eagle.load_options import LoadOptions
from mlx_eagle.option import (
    GROUPS,
    Bytes,
    Choice,
    Number,
    Option,
    Pairs,
    Switch,
    Text,
    Texts,
    Whole,
    options_of,
)
from mlx_eagle.sampling.options import COLDEST
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.training.options import DataOptions, HeadOptions, LoopOptions


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        (Whole(1, 3), (1, 3), (0, 4, 1.0, True, "1", None)),
        (Number(0, 1, is_open=True), (0.1, 1, 1.0), (0, 1.01, float("nan"), "1", None)),
        (Number(COLDEST, or_zero=True), (0, COLDEST, 9.0), (-1, COLDEST / 2, float("inf"))),
        (Number(-2, 2, is_bound=False), (-3, 3.5), (float("-inf"), "0")),
        (Choice((4, 8)), (4, 8), (5, "4", 4.0, True)),
        (Choice(("a", "b")), ("a",), ("c", 1, "A")),
        (Switch(), (True, False), ()),
        (Text(), ("", "x"), (1, None)),
        (Texts(), ((), ["a"]), ("a", [1])),
        (Bytes(), (1,), (0, 1.5)),
        (Pairs(), ({}, {"a": 1}), ([], "a=1", {1: 2})),
    ],
)
def test_a_kind_says_what_a_wrong_value_must_be(
    kind: Any, right: tuple[Any, ...], wrong: tuple[Any, ...]
) -> None:
    assert [kind.fault(value) for value in right] == [""] * len(right)
    for value in wrong:
        assert kind.fault(value).startswith(("it must be ", "give "))


def test_descriptions_are_complete_and_no_name_is_taken_twice() -> None:
    described = list[Option]()
    for kinds in ((GenerationOptions, LoadOptions), (DataOptions, HeadOptions, LoopOptions)):
        names = [name for kind in kinds for name in options_of(kind)]
        assert len(names) == len(set(names)), "they are flags of one command"
        described += [option for kind in kinds for option in options_of(kind).values()]
    assert all(option.help.endswith(".") for option in described)
    assert {option.group for option in described} == set(GROUPS)
    short = [option.short for option in described if option.short]
    assert len(set(short)) == len(short)


def test_options_are_read_without_mlx() -> None:
    code = (
        "import mlx_eagle.load_options, mlx_eagle.session.options, mlx_eagle.tree_shape, sys;"
        "print([name for name in ('mlx', 'mlx_lm', 'numpy', 'click') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
