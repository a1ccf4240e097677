"""The options of requests and of loading: defaults, ranges, and one description for all places."""

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest

from mlx_eagle.decoding.prefill import PREFILL_STEP
from mlx_eagle.errors import EagleError
from mlx_eagle.load_options import LoadOptions
from mlx_eagle.option import GROUPS, Bytes, Choice, Number, Switch, Text, Texts, Whole, options_of
from mlx_eagle.sampling.options import COLDEST, SamplingOptions
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.selector import make_grammar, make_processors, make_sampler
from mlx_eagle.tree_shape import TreeShape


def test_every_load_option_is_described() -> None:
    assert set(options_of(LoadOptions)) == set(vars(LoadOptions()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype is 'int4'; it must be one of float32, float16, bfloat16"),
        ({"kv_bits": 5}, "kv_bits is 5; it must be 4 or 8"),
        ({"kv_group_size": 48}, "kv_group_size is 48; it must be 32, 64 or 128"),
        ({"max_kv_size": 15}, "max_kv_size is 15; it must be a whole number from 16 on"),
        ({"head_window": -1}, "head_window is -1; it must be a whole number from 0 on"),
        ({"max_context": 2.5}, "max_context is 2.5; it must be a whole number from 2 on"),
        ({"memory_limit": 0}, "memory_limit is 0; it must be a whole number from 1 on"),
    ],
)
def test_a_load_option_that_makes_no_sense_is_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EagleError) as raised:
        LoadOptions(**options)
    assert str(raised.value) == message


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
    ],
)
def test_a_kind_says_what_a_wrong_value_must_be(
    kind: Any, right: tuple[Any, ...], wrong: tuple[Any, ...]
) -> None:
    assert [kind.fault(value) for value in right] == [""] * len(right)
    for value in wrong:
        assert kind.fault(value).startswith(("it must be ", "give "))


def test_a_penalty_is_bounded_where_it_is_typed_and_free_in_the_library() -> None:
    assert GenerationOptions(presence_penalty=3.5).presence_penalty == 3.5
    with pytest.raises(ValueError, match="presence_penalty is inf; it must be a finite number"):
        GenerationOptions(presence_penalty=float("inf"))


def test_the_sampler_is_made_from_the_options_that_describe_it() -> None:
    sampler = make_sampler(GenerationOptions(temperature=0.5, top_k=3, seed=7))
    assert sampler == SeededSampler(0.5, 1.0, 3, 0.0, 7)
    assert [field.name for field in fields(SeededSampler)] == list(options_of(SamplingOptions))
    assert make_processors(GenerationOptions()) == []
    assert make_grammar(GenerationOptions()) is None


def test_descriptions_are_complete_and_no_name_is_taken_twice() -> None:
    described = options_of(GenerationOptions) | options_of(LoadOptions)
    assert len(described) == len(options_of(GenerationOptions)) + len(options_of(LoadOptions))
    assert all(option.help.endswith(".") for option in described.values())
    assert {option.group for option in described.values()} == set(GROUPS)
    short = [option.short for option in described.values() if option.short]
    assert len(set(short)) == len(short)


def test_options_are_read_without_mlx() -> None:
    code = (
        "import mlx_eagle.load_options, mlx_eagle.session.options, mlx_eagle.tree_shape, sys;"
        "print([name for name in ('mlx', 'mlx_lm', 'numpy', 'click') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_prompt_is_read_in_the_chunks_of_prefill() -> None:
    assert GenerationOptions().prefill_step_size == PREFILL_STEP


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((4, None, None), (4, 1, 4)),
        ((4, 2, None), (4, 2, 8)),
        ((4, None, 8), (4, 2, 8)),
        ((4, None, 4), (4, 1, 4)),
        ((3, None, 7), (3, 3, 7)),
        ((1, 5, None), (1, 5, 5)),
        ((6, 10, 59), (6, 10, 59)),
    ],
)
def test_a_tree_is_completed_from_the_sizes_that_are_given(
    sizes: tuple[int, int | None, int | None], shape: tuple[int, int, int]
) -> None:
    assert TreeShape.complete(*sizes) == TreeShape(*shape)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("4x2x8", (4, 2, 8)),
        ("4x2", (4, 2, 8)),
        ("4", (4, 1, 4)),
        (" 4 x 2 x 8 ", (4, 2, 8)),
        ("4 2 8", (4, 2, 8)),
    ],
)
def test_a_tree_is_read_as_users_write_it(text: str, shape: tuple[int, int, int]) -> None:
    read = TreeShape.parse(text)
    assert read == TreeShape(*shape)
    assert TreeShape.parse(read.text) == read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no tree; write DEPTHxWIDTHxNODES"),
        ("4x", "is no tree"),
        ("4x2x8x1", "is no tree"),
        ("four", "is no tree"),
        ("-4", "is no tree"),
        ("٤", "is no tree"),
        ("0", "0 is no size of a tree; sizes are from 1 to 1024"),
        ("4x9999", "9999 is no size of a tree"),
        ("4x1x9", "a tree of depth 4 and width 1 has 4 to 4 nodes, not 9"),
        ("4x2x3", "a tree of depth 4 and width 2 has 4 to 14 nodes, not 3"),
        ("4x32x300", "at most 4096 candidates .* and 255 nodes are possible"),
    ],
)
def test_a_text_that_is_no_tree_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreeShape.parse(text)
