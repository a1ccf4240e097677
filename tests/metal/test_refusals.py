"""What cannot be run is refused, with one reason: MLX's own where MLX has one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from metal_emulator import build, metal_kernel
from metal_emulator.build import COMPILER_VARIABLE, find_compiler
from metal_emulator.threadgroup_storage import rewrite_threadgroup_storage

COPY = "uint i = thread_position_in_grid.x;\ny[i] = x[i];"


def run(source: str, header: str = "", options: dict[str, Any] | None = None, **more: Any) -> Any:
    kernel = metal_kernel("refused", ["x"], ["y"], source, header, **(options or {}))
    kernel(
        inputs=[mx.ones((64,))],
        grid=(64, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(64,)],
        output_dtypes=[mx.float32],
        **more,
    )
    return kernel


@pytest.mark.metal
def test_a_source_that_does_not_compile_is_shown_with_the_kernel_s_own_lines() -> None:
    message = r"does not compile:\nkernel_body:2:8: error: use of undeclared identifier 'z'"
    with pytest.raises(SyntaxError, match=message):
        run(COPY.replace("x[i]", "z[i]"))


@pytest.mark.metal
def test_a_header_s_line_is_named_too() -> None:
    with pytest.raises(SyntaxError, match=r"kernel_header:2:\d+: error: unknown type name 'fluat'"):
        run(COPY, "\nfluat one() { return 1; }")


def test_too_many_threads_are_refused_in_mlx_s_words() -> None:
    """The double space is MLX's."""
    message = (
        r"^Thread group size \(64\) is greater than  the maximum allowed threads per threadgroup "
        r"\(32\)\.$"
    )
    with pytest.raises(ValueError, match=message):
        run(COPY, options={"max_threads": 32})


def test_without_clang_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(COMPILER_VARIABLE, raising=False)
    assert find_compiler() is None
    with pytest.raises(RuntimeError, match=r"^the Metal emulator needs clang\+\+ 18 or newer.*$"):
        run(COPY)


@pytest.mark.metal
@pytest.mark.parametrize(("version", "is_taken"), [("17.0.6", False), ("18.1.0", True)])
def test_a_clang_without_a_number_in_its_name_is_asked_for_its_version(
    version: str, is_taken: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "clang++"
    program.write_text(f"#!/bin/sh\necho 'Debian clang version {version}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(COMPILER_VARIABLE, raising=False)
    assert find_compiler() == ("clang++" if is_taken else None)


def test_a_type_that_no_kernel_takes_is_named() -> None:
    with pytest.raises(ValueError, match="takes no complex64"):
        metal_kernel("refused", ["x"], ["y"], COPY)(
            inputs=[mx.ones((4,), mx.complex64)],
            grid=(4, 1, 1),
            threadgroup=(4, 1, 1),
            output_shapes=[(4,)],
            output_dtypes=[mx.float32],
        )


@pytest.mark.metal
def test_more_threadgroup_memory_than_apple_gives_is_a_finding() -> None:
    source = "threadgroup float heap[8193];\n" + COPY + "\nheap[i] = x[i];"
    report = run(source, options={"strict": False}).report
    assert report.kinds() == ["threadgroup-memory"]
    assert "need 32772 bytes" in report[0]["text"]


SPACES = """
inline float first(const device float* p) { return p[0]; }
inline float shared(const threadgroup float* p) { return p[0]; }
"""
BODY = """uint i = thread_position_in_grid.x;
threadgroup float part[64];
part[i] = x[i];
threadgroup_barrier(mem_flags::mem_threadgroup);
"""


@pytest.mark.metal
def test_pointers_of_the_right_address_spaces_are_accepted() -> None:
    run(BODY + "y[i] = first(x) + shared(part);", SPACES, spaces=True)


@pytest.mark.metal
@pytest.mark.parametrize(
    "mixed",
    [
        "y[i] = first(part);",
        pytest.param("y[i] = shared(x);", marks=pytest.mark.broad),
        pytest.param("const float* p = x; y[i] = *p;", marks=pytest.mark.broad),
        pytest.param("device float* p = part; y[i] = *p;", marks=pytest.mark.broad),
    ],
)
def test_pointers_of_mixed_address_spaces_are_refused(mixed: str) -> None:
    """Without address spaces it compiles, which is why they have a check of their own."""
    with pytest.raises(SyntaxError, match="kernel_body:5:"):
        run(BODY + mixed, SPACES, spaces=True)


@pytest.mark.metal
def test_what_was_compiled_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(command: Sequence[str], folder: Path) -> None:
        raise AssertionError(command)

    run(COPY)
    monkeypatch.setattr(build, "_run", no_compiler)
    run(COPY)
    with pytest.raises(AssertionError, match="kernel"):
        run(COPY, options={"flags": ["-DOTHER"]})


def test_compiled_kernels_stand_in_the_folder_that_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(build.CACHE_VARIABLE, raising=False)
    assert build.cache_folder() == tmp_path / "mlx-eagle-metal-emulator"
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "own"))
    assert build.cache_folder() == tmp_path / "own"


@pytest.mark.parametrize(
    ("source", "rewritten"),
    [
        ("threadgroup float a[4];", "MTL_TGVAR  float a[4]; MTL_TGREG(a, 0)"),
        ("threadgroup T a[N], b;", "MTL_TGVAR  T a[N], b; MTL_TGREG(a, 0) MTL_TGREG(b, 1)"),
        ("threadgroup vec<T, 4> v[2][3];", "MTL_TGVAR  vec<T, 4> v[2][3]; MTL_TGREG(v, 0)"),
        ("threadgroup float* p = a;", "threadgroup float* p = a;"),
        ("void f(threadgroup float& x);", "void f(threadgroup float& x);"),
        ("threadgroup_barrier(x);", "threadgroup_barrier(x);"),
    ],
)
def test_only_declarations_of_threadgroup_storage_are_rewritten(
    source: str, rewritten: str
) -> None:
    assert rewrite_threadgroup_storage(source) == rewritten


def test_more_buffers_than_metal_binds_are_refused() -> None:
    names = [f"x{n}" for n in range(31)]
    with pytest.raises(ValueError, match="32 buffers: Metal binds 31"):
        metal_kernel("refused", names, ["y"], "y[0] = x0[0];")(
            inputs=[mx.ones((4,))] * 31,
            grid=(4, 1, 1),
            threadgroup=(4, 1, 1),
            output_shapes=[(4,)],
            output_dtypes=[mx.float32],
        )
