"""The signature that the emulator writes is the one that MLX generates for the same call."""

import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from metal_emulator.arrays import dtype_name, new_output, to_host
from metal_emulator.signature import (
    ATTRIBUTES,
    input_buffers,
    output_buffers,
    signature,
    template_texts,
)

BODY = "y[0] = x[0];"
LAYOUT = "y[0] = x_shape[0] + x_strides[1] + x_ndim + s_ndim + c_shape[0] + c_ndim;"
NAMES = ["x", "s", "c"]
INPUTS = [mx.zeros((3, 5), mx.float16), mx.array(2.0), mx.zeros((7,), mx.int32)]
TYPES = [
    mx.float32, mx.float16, mx.bfloat16, mx.int8, mx.int16, mx.int32, mx.int64,
    mx.uint8, mx.uint16, mx.uint32, mx.uint64, mx.bool_,
]  # fmt: skip
TEMPLATE = [("T", mx.bfloat16), ("N", 3), ("B", True), ("OFF", False), ("M", -4), ("U", mx.uint32)]
CASES: dict[str, dict[str, Any]] = {
    "plain": {"body": BODY},
    "layout": {"body": LAYOUT},
    "some layout": {"body": "y[0] = c_shape[0] + x_ndim;"},
    "templates": {"body": BODY, "template": TEMPLATE},
    "several outputs": {"body": BODY, "outputs": ["y", "z"], "dtypes": [mx.bfloat16, mx.bool_]},
    "atomic outputs": {"body": BODY, "is_atomic": True},
    "every attribute": {"body": BODY + " + ".join(ATTRIBUTES)},
    "an attribute in a comment": {"body": BODY + " // my_thread_position_in_grid"},
    "every type": {
        "body": BODY,
        "names": [f"x{n}" for n in range(len(TYPES))],
        "inputs": [mx.zeros((8,), dtype) for dtype in TYPES],
    },
    **{
        f"{n} elements": {"body": BODY, "names": ["x"], "inputs": [mx.zeros((n,))]}
        for n in (1, 7, 8, 9)
    },
    **{f"the word {name}": {"body": f"{BODY} uint a = {name};"} for name in ATTRIBUTES},
}


def write_here(case: dict[str, Any]) -> str:
    """Return the emulator's signature."""
    inputs = [to_host(value) for value in case.get("inputs", INPUTS)]
    dtypes = [dtype_name(dtype) for dtype in case.get("dtypes", [mx.float32])]
    outputs = [new_output((4,), dtype, None) for dtype in dtypes]
    buffers = [
        *input_buffers(case.get("names", NAMES), inputs, case["body"]),
        *output_buffers(case.get("outputs", ["y"]), outputs, case.get("is_atomic", False)),
    ]
    return signature(buffers, case["body"], case.get("template", ()))


def write_in_mlx(case: dict[str, Any], folder: Path) -> None:
    """Have MLX print the source that it generates: it does where a function is exported."""
    make_kernel: Any = mx.fast.metal_kernel  # its type in MLX is `object`
    kernel = make_kernel(
        "sample",
        case.get("names", NAMES),
        case.get("outputs", ["y"]),
        case["body"],
        atomic_outputs=case.get("is_atomic", False),
    )
    dtypes = case.get("dtypes", [mx.float32])

    def call(*inputs: mx.array) -> Any:
        return kernel(
            inputs=list(inputs),
            template=case.get("template"),
            grid=(4, 1, 1),
            threadgroup=(4, 1, 1),
            output_shapes=[(4,)] * len(dtypes),
            output_dtypes=dtypes,
            verbose=True,
        )

    mx.export_function(str(folder / "call.mlxfn"), call, *case.get("inputs", INPUTS))


def head_of(text: str) -> str:
    """Return template line and parameters without the function's name and white space."""
    head = re.search(r"(template <[^\n]*>\n)?\[\[kernel\]\] void \w+(\(.*?\)) \{", text, re.DOTALL)
    assert head, text
    return re.sub(r"\s+", " ", f"{head[1] or ''}{head[2]}")


@pytest.mark.parametrize("name", CASES)
def test_the_signature_is_the_one_that_mlx_generates(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_in_mlx(CASES[name], tmp_path)
    assert head_of(write_here(CASES[name])) == head_of(capfd.readouterr().out)


def test_the_template_values_are_those_that_mlx_passes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_in_mlx(CASES["templates"], tmp_path)
    passed = re.search(r"decltype\(\w+<(.*?)>\)", capfd.readouterr().out)
    assert passed
    as_words = {"0": "false", "1": "true"}  # MLX writes bools as numbers
    values = [as_words.get(value, value) for value in passed[1].split(", ")]
    assert template_texts(TEMPLATE)[1] == f"<{', '.join(values)}>"
