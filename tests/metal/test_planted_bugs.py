"""Every planted bug is reported with its kind and its line; the sound kernel has no finding."""

from typing import Any

import mlx.core as mx
import pytest

from cases import rotated
from metal_emulator import EmulationError, Kernel, metal_kernel
from planted_bugs import BUGS, HEADER, ROWS, SOURCE, THREADS, WIDTH, Bug, lines_of

pytestmark = pytest.mark.metal
SEEDS = (0, 1, 2, 3)  # 0 is the lanes' own order


@pytest.fixture(scope="module")
def rows() -> mx.array:
    return mx.random.normal((ROWS, WIDTH), key=mx.random.key(7))


@pytest.fixture(scope="module")
def sums() -> Kernel:
    return metal_kernel("row_sums", ["x", "bug"], ["y"], SOURCE, HEADER, strict=False)


def run(kernel: Kernel, rows: mx.array, bug: int, **more: Any) -> mx.array:
    (result,) = kernel(
        inputs=[rows, mx.array(bug)],
        grid=(THREADS, ROWS, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[(ROWS,)],
        output_dtypes=[mx.float32],
        **more,
    )
    assert isinstance(result, mx.array)
    return result


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sound_kernel_sums_its_rows_and_has_no_finding(
    sums: Kernel, rows: mx.array, seed: int
) -> None:
    result = run(sums, rows, 0, seed=seed)
    assert sums.report == []
    assert mx.allclose(result, rows.sum(axis=1), atol=1e-4)


@pytest.mark.parametrize(
    ("bug", "seed"),
    list(rotated(BUGS, SEEDS)),
    ids=lambda v: v.name if isinstance(v, Bug) else None,
)
def test_a_planted_bug_is_reported_with_its_kind_and_line(
    sums: Kernel, rows: mx.array, bug: Bug, seed: int
) -> None:
    run(sums, rows, BUGS.index(bug) + 1, seed=seed)
    found = [finding for finding in sums.report if finding["kind"] == bug.kind]
    assert found, sums.report
    if bug.has_line:
        named = {line for finding in found for line in (finding["line"], finding["other_line"])}
        assert named & set(lines_of(bug)), (found, lines_of(bug))


def number_of(name: str) -> int:
    return [bug.name for bug in BUGS].index(name) + 1


def test_inputs_start_where_they_are_told_to(sums: Kernel, rows: mx.array) -> None:
    """The planted load of 16 bytes is one element off; three more make it right.

    Where it is off the CPU may refuse the load as well, which ends the run.
    """
    run(sums, rows, number_of("misaligned_vector"), misalign=3)
    assert sums.report == []
    run(sums, rows, number_of("misaligned_vector"), misalign=4)
    assert "misaligned" in sums.report.kinds()


@pytest.mark.broad
def test_without_checks_a_bug_that_harms_nothing_goes_unnoticed(rows: mx.array) -> None:
    unchecked = metal_kernel("row_sums", ["x", "bug"], ["y"], SOURCE, HEADER, checks=False)
    result = run(unchecked, rows, number_of("barrier_without_memory"))
    assert mx.allclose(result, rows.sum(axis=1), atol=1e-4)


def test_a_strict_kernel_raises_what_it_finds(rows: mx.array) -> None:
    strict = metal_kernel("row_sums", ["x", "bug"], ["y"], SOURCE, HEADER)
    with pytest.raises(
        EmulationError, match=r"write-to-input \(line 18, 384 times\): write to"
    ) as e:
        run(strict, rows, number_of("write_to_input"))
    assert e.value.report.kinds() == ["write-to-input"]
