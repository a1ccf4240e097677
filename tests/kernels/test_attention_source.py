"""Every bug planted into the attention kernels is reported, or makes wrong numbers.

All are in one text, and a further input chooses: a text of its own would have to be compiled for
each.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import pytest

from attention_cases import Case, error, make_inputs, run
from emulated import Emulated
from mlx_eagle.kernels import attention as module
from mlx_eagle.kernels import attention_text
from mlx_eagle.kernels.metal_text import bare

pytestmark = pytest.mark.metal
CASE = Case(rows=5, length=303)  # three splits, 20 queries for each KV head, ragged at both
WRONG = "wrong numbers"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);\n"
UNINITIALISED = "uninitialised-threadgroup-read"


class Bug(NamedTuple):
    """A part of the source, and the same with a mistake where BUG is true.

    Attributes:
        name: what was done wrong.
        sound: stands in the source once.
        planted: what stands there instead.
        caught: the kind of finding, or WRONG.
    """

    name: str
    sound: str
    planted: str
    caught: str


def left_out(name: str, statement: str, caught: str) -> Bug:
    return Bug(name, statement, f"if (!BUG) {statement}", caught)


def instead(name: str, sound: str, broken: str, caught: str) -> Bug:
    """Make a bug of an expression; a semicolon behind it stays behind it."""
    expression = sound.removesuffix(";")
    return Bug(name, sound, f"(BUG ? {broken} : {expression}){sound[len(expression) :]}", caught)


CLAMPED = "min(first + 8 * k + fm, length - 1));\nload_pieces"
PRODUCT = "simdgroup_multiply_accumulate(products[t], a, b, products[t]);"
BUGS = [
    left_out("no barrier behind the queries", BARRIER + "for (int first", UNINITIALISED),
    left_out("no barrier before scores", BARRIER + "if (has_keys)", "threadgroup-race"),
    left_out("no barrier before weights", BARRIER + "UNROLL for (int r", UNINITIALISED),
    left_out("no barrier before sums", BARRIER + "UNROLL for (int t", "threadgroup-race"),
    instead(
        "keys beyond the end",
        "min(first + 8 * group + fm, length - 1)",
        "(first + 8 * group + fm)",
        "out-of-bounds",
    ),
    Bug("values beyond the end", CLAMPED, f"BUG ? first + 8 * k + fm : {CLAMPED}", "out-of-bounds"),
    instead("queries beyond the last", "min(q0 + q, Q - 1);", "(q0 + q)", "out-of-bounds"),
    Bug("answers beyond the last", "if (q < Q)\n", "if (q < Q || BUG)\n", "out-of-bounds"),
    Bug(
        "scores beyond their array",
        "* LINE + 8 * group",
        "* (LINE + BUG) + 8 * group",
        "array-index",
    ),
    Bug("no key is hidden by the end", "first + k < end &&", "(BUG || first + k < end) &&", WRONG),
    Bug("another row's mask", "Q - 1) % N", "Q - 1) / (BUG ? G : 1) % N", WRONG),
    left_out("the largest score is forgotten", "largest[r] = top;", WRONG),
    instead("sums keep their old scale", "factor[8 * t + fm];", "1.0f", WRONG),
    instead("earlier blocks do not count", "total[r] * kept + sum;", "sum", WRONG),
    instead("no scale", "SCALE;", "1.0f", WRONG),
    instead("heads without their gap", "size_t(keys_strides[1])", "size_t(length * D)", WRONG),
    left_out(
        "products that start with anything",
        "products[t] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);",
        "uninitialised-fragment",
    ),
    Bug(
        "a product without a lane",
        PRODUCT,
        f"if (!BUG || lane < 31) {PRODUCT}",
        "divergent-collective",
    ),
    left_out("a total not stored", "totals[(line + q) * 2 + 1] = total[r];", "output-not-written"),
    Bug(
        "a split left out",
        "int s = 0; s < splits; ++s) {",
        "int s = BUG; s < splits; ++s) {",
        WRONG,
    ),
    instead("splits that weigh the same", "fast::exp2(totals[at * 2] - top);", "1.0f", WRONG),
]


def plant(arguments: dict[str, Any]) -> dict[str, Any]:
    """Put the bugs into the source of a kernel, which reads from one more input which is on."""
    source = arguments["source"]
    if "attention_split" not in arguments["name"] and "attention_combine" not in arguments["name"]:
        return arguments
    for number, bug in enumerate(BUGS, 1):
        if bug.sound in source:
            assert source.count(bug.sound) == 1, bug.name
            source = source.replace(bug.sound, bug.planted.replace("BUG", f"(bug == {number})"))
    names = [*arguments["input_names"], "bug"]
    return {**arguments, "source": source, "input_names": names, "name": "bugs"}


def readable(code: str) -> str:
    """Return code with its names, without comments and empty lines."""
    return "\n".join(filter(None, bare(code).split("\n"))) + "\n"


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulated]:
    """Kernels with all bugs in them, none of which is on."""
    made = Emulated(strict=False)
    made.edit = plant
    for place in (attention_text, module):  # bugs are planted into what can be read
        monkeypatch.setattr(place, "short", readable)
    monkeypatch.setattr(mx.fast, "metal_kernel", made)
    module.kernels.cache_clear()
    yield made
    module.kernels.cache_clear()


def test_without_a_bug_there_is_no_finding(emulated: Emulated) -> None:
    emulated.extra_inputs = [mx.array(0)]
    inputs = make_inputs(CASE)
    assert error(CASE, inputs, run(CASE, inputs)) <= 1
    assert emulated.findings() == []
    planted = "".join(kernel.source for kernel in emulated.launched)
    assert all(f"(bug == {number})" in planted for number in range(1, len(BUGS) + 1))


@pytest.mark.parametrize("bug", BUGS, ids=[bug.name for bug in BUGS])
def test_a_planted_bug_is_caught(emulated: Emulated, bug: Bug) -> None:
    emulated.extra_inputs = [mx.array(BUGS.index(bug) + 1)]
    inputs = make_inputs(CASE)
    worst = error(CASE, inputs, run(CASE, inputs))
    if bug.caught == WRONG:
        assert not worst <= 2
    else:
        assert bug.caught in emulated.findings()
