"""Safetensors headers: read only if nothing about them is odd."""

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.safetensors import TensorInfo, read_header, read_tensors

TENSORS = {
    "a.weight": mx.arange(6, dtype=mx.float16).reshape(2, 3),
    "b.weight": mx.array([1.5, -2.0], dtype=mx.bfloat16),
    "c": mx.array([[True, False]]),
    "d": mx.array([3], dtype=mx.int64),
}


def write_safetensors(file: Path, header: Any, n_bytes: int = 8, claim: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(
        struct.pack("<Q", len(text) if claim is None else claim) + text + bytes(n_bytes)
    )
    return file


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_header_of_mlx_is_read_and_its_weights_are_equal(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    mx.save_safetensors(str(file), TENSORS, metadata={"format": "mlx"})
    assert read_header(file) == {
        "a.weight": TensorInfo("F16", (2, 3)),
        "b.weight": TensorInfo("BF16", (2,)),
        "c": TensorInfo("BOOL", (1, 2)),
        "d": TensorInfo("I64", (1,)),
    }
    weights = read_tensors(file)
    assert {name: array.dtype for name, array in weights.items()} == {
        name: array.dtype for name, array in TENSORS.items()
    }
    assert all(mx.array_equal(weights[name], TENSORS[name]) for name in TENSORS)


REFUSED_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "longer than the file": ({"header": {"x": entry()}, "claim": 1 << 40}, "claims 1099511627776"),
    "longer than allowed": (
        {"header": {}, "claim": (16 << 20) + 1, "n_bytes": 17 << 20},
        "claims 16777217 .* at most 16777216",
    ),
    "not JSON": ({"header": b"{x", "n_bytes": 0}, "sound"),
    "not UTF-8": ({"header": b'{"\xff":1}', "n_bytes": 0}, "sound"),
    "not an object": ({"header": []}, "not an object"),
    "nested without end": ({"header": b'{"x":' + b"[" * 200_000}, "recursion"),
    "odd metadata": ({"header": {"__metadata__": {"a": 1}}}, "integer `1`, expected a string"),
    "name twice": ({"header": b'{"x":1,"x":1}'}, "key 'x' comes twice"),
    "UTF-16": ({"header": "{}".encode("utf-16"), "n_bytes": 0}, "utf-8"),
    "millions of lists": ({"header": b'{"x":[' + b"[]," * 600_000}, "more than 500000"),
    "endless number": ({"header": {"x": entry(shape=[10**4000])}}, "integer of 4001 digits"),
    "name that is no text": ({"header": b'{"\\ud800":1}'}, "surrogates"),
    "type that MLX lacks": (
        {"header": {"x": entry("F4", [16])}},
        "'x' has the type F4, which MLX cannot load",
    ),
    "unknown type": ({"header": {"x": entry("F\\x1b5")}}, "unknown variant"),
    "type that is a list": ({"header": {"x": entry(["F32"])}}, "sequence, expected string"),
    "entry that is a list": ({"header": {"x": []}}, "expected struct TensorInfo"),
    "extra key": ({"header": {"x": entry() | {"y": 1}}}, "malformed"),
    "negative size": ({"header": {"x": entry(shape=[-2])}}, "integer `-2`"),
    "size that is a float": ({"header": {"x": entry(shape=[2.0])}}, "floating point `2.0`"),
    "size that is a bool": ({"header": {"x": entry("F32", [2, True])}}, "boolean `true`"),
    "huge size": ({"header": {"x": entry(shape=[1 << 31])}}, "invalid shape"),
    "sizes that overflow": ({"header": {"x": entry("U8", [1 << 30] * 3)}}, "overflow computing"),
    "huge offset": ({"header": {"x": entry(offsets=[0, 1 << 60])}}, "invalid .* offset"),
    "negative offset": ({"header": {"x": entry(offsets=[-8, 0])}}, "integer `-8`"),
    "one axis too large, one empty": (
        {"header": {"x": entry(shape=[0, 1 << 40], offsets=[0, 0])}, "n_bytes": 0},
        "malformed",
    ),
    "nine axes": ({"header": {"x": entry(shape=[2] + [1] * 8)}}, "malformed"),
    "three offsets": ({"header": {"x": entry(offsets=[0, 4, 8])}}, "expected 2 elements"),
    "size that differs": ({"header": {"x": entry(shape=[3])}}, "invalid shape"),
    "offsets backwards": ({"header": {"x": entry(offsets=[8, 0])}}, "invalid offset .* `x`"),
    "beyond the file": ({"header": {"x": entry()}, "n_bytes": 7}, "file not fully covered"),
    "bytes left over": ({"header": {"x": entry()}, "n_bytes": 9}, "file not fully covered"),
    "overlap": ({"header": {"x": entry(), "y": entry()}}, "invalid offset for tensor `[xy]`"),
    "gap": (
        {"header": {"x": entry(), "y": entry(offsets=[12, 20])}, "n_bytes": 20},
        "invalid offset for tensor `y`",
    ),
    "name with an escape": ({"header": {"\x1b[2J": entry()}}, "is not a name"),
}


@pytest.mark.parametrize("name", REFUSED_HEADERS)
def test_odd_safetensors_header_is_refused(tmp_path: Path, name: str) -> None:
    options, message = REFUSED_HEADERS[name]
    file = write_safetensors(tmp_path / "model.safetensors", **options)
    for read in (read_header, read_tensors):
        with pytest.raises(CheckpointError, match=f"model.safetensors is not.*{message}") as caught:
            read(file)
        assert str(caught.value).isprintable()


def test_file_without_a_header_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match="not a sound safetensors file"):
        read_header(file)


def test_safetensors_written_by_the_reference_library_are_read(tmp_path: Path) -> None:
    values = {"x": np.arange(4, dtype=np.float16), "y": np.zeros((0, 3), np.int32)}
    save_file(values, tmp_path / "model.safetensors")
    weights = read_tensors(tmp_path / "model.safetensors")
    assert all(np.array_equal(np.array(weights[name]), values[name]) for name in values)
