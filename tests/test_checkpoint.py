"""Weights found in a folder, and safetensors headers: read only if nothing about them is odd."""

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.convert.checkpoint import (
    find_weights,
    hash_file,
    language_config,
    read_count,
    read_header,
    read_json,
    read_manifest,
    read_number,
    read_weights,
    source_name,
)
from mlx_eagle.convert.pickles import TensorInfo
from mlx_eagle.errors import CheckpointError

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
    weights = read_weights(file)
    assert {name: array.dtype for name, array in weights.items()} == {
        name: array.dtype for name, array in TENSORS.items()
    }
    assert all(mx.array_equal(weights[name], TENSORS[name]) for name in TENSORS)


REFUSED_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "longer than the file": ({"header": {"x": entry()}, "claim": 1 << 40}, "claims 1099511627776"),
    "longer than allowed": ({"header": {}, "claim": 100_000_001}, "claims 100000001"),
    "not JSON": ({"header": b"{x", "n_bytes": 0}, "sound"),
    "not UTF-8": ({"header": b'{"\xff":1}', "n_bytes": 0}, "sound"),
    "not an object": ({"header": []}, "not an object"),
    "nested without end": ({"header": b'{"x":' + b"[" * 200_000}, "recursion"),
    "odd metadata": ({"header": {"__metadata__": {"a": 1}}}, "metadata"),
    "name twice": ({"header": b'{"x":1,"x":1}'}, "twice"),
    "unknown type": ({"header": {"x": entry("F4")}}, "'F4', which MLX cannot load"),
    "type that is a list": ({"header": {"x": entry(["F32"])}}, "list, which MLX cannot load"),
    "entry that is a list": ({"header": {"x": []}}, "malformed"),
    "extra key": ({"header": {"x": entry() | {"y": 1}}}, "malformed"),
    "negative size": ({"header": {"x": entry(shape=[-2])}}, "malformed"),
    "size that is a float": ({"header": {"x": entry(shape=[2.0])}}, "malformed"),
    "size that is a bool": ({"header": {"x": entry("F32", [2, True])}}, "malformed"),
    "huge size": ({"header": {"x": entry(shape=[1 << 60])}}, "malformed"),
    "nine axes": ({"header": {"x": entry(shape=[2] + [1] * 8)}}, "malformed"),
    "three offsets": ({"header": {"x": entry(offsets=[0, 4, 8])}}, "malformed"),
    "size that differs": ({"header": {"x": entry(shape=[3])}}, "for 12 bytes"),
    "offsets backwards": ({"header": {"x": entry(offsets=[8, 0])}}, "for 8 bytes"),
    "beyond the file": ({"header": {"x": entry()}, "n_bytes": 7}, "take 8 bytes of 7"),
    "bytes left over": ({"header": {"x": entry()}, "n_bytes": 9}, "take 8 bytes of 9"),
    "overlap": ({"header": {"x": entry(), "y": entry()}}, "'y' begins at byte 0, expected 8"),
    "gap": (
        {"header": {"x": entry(), "y": entry(offsets=[12, 20])}, "n_bytes": 20},
        "'y' begins at byte 12, expected 8",
    ),
    "name with an escape": ({"header": {"\x1b[2J": entry()}}, "is not a name"),
}


@pytest.mark.parametrize("name", REFUSED_HEADERS)
def test_odd_safetensors_header_is_refused(tmp_path: Path, name: str) -> None:
    options, message = REFUSED_HEADERS[name]
    file = write_safetensors(tmp_path / "model.safetensors", **options)
    for read in (read_header, read_weights):
        with pytest.raises(CheckpointError, match=f"(?s)model.safetensors is not.*{message}"):
            read(file)


def test_file_without_a_header_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match="not a sound safetensors file"):
        read_header(file)


def test_2000_mutated_headers_are_refused_or_describe_the_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    mx.save_safetensors(str(file), TENSORS)
    good = file.read_bytes()
    end = 8 + struct.unpack("<Q", good[:8])[0]
    source = random.Random(0)
    n_read = 0
    for _ in range(2000):
        changed = bytearray(good)
        for _ in range(source.choice([1, 1, 2])):
            changed[source.randrange(end)] ^= 1 << source.randrange(8)
        file.write_bytes(changed)
        try:
            header = read_header(file)
        except CheckpointError:
            continue
        n_read += 1
        weights = read_weights(file)
        assert {name: array.shape for name, array in weights.items()} == {
            name: info.shape for name, info in header.items()
        }
        mx.eval(weights)
    assert n_read > 50


def sharded(folder: Path, weight_map: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(TENSORS, start=1):
        file = folder / f"model-0000{number}-of-00004.safetensors"
        mx.save_safetensors(str(file), {name: TENSORS[name]})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_shards_that_an_index_names_are_read_together(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    folder = sharded(tmp_path / "model", dict(zip(TENSORS, names, strict=True)))
    assert [file.name for file in find_weights(folder)] == names
    assert set(read_manifest(folder)) == set(TENSORS)


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00004.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "..",
        "",
        "config.json",
        "model.bin",
        7,
        None,
    ],
)
def test_index_that_names_anything_but_a_weight_file_of_its_folder_is_refused(
    tmp_path: Path, name: Any
) -> None:
    folder = sharded(tmp_path / "model", {"a.weight": name})
    with pytest.raises(CheckpointError, match="file of its folder"):
        find_weights(folder)


def test_index_with_a_missing_shard_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", {"a": "model-00009-of-00009.safetensors"})
    with pytest.raises(CheckpointError, match=r"model lacks model-00009-of-00009\.safetensors"):
        find_weights(folder)


def test_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        mx.save_safetensors(str(tmp_path / name), {"x": mx.zeros(2)})
    with pytest.raises(CheckpointError, match="'x' is in another file"):
        read_manifest(tmp_path)


def test_safetensors_are_preferred_to_pickles(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights"):
        find_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    assert [file.name for file in find_weights(tmp_path)] == ["pytorch_model.bin"]
    (tmp_path / "model.safetensors").touch()
    assert [file.name for file in find_weights(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not readable JSON"),
        (b"\xff\xfe{", "not readable JSON"),
        (b'{"x":' * 200_000, "not readable JSON"),
        (b'{"x":' + b"9" * 5000 + b"}", "not readable JSON"),
        (None, "does not exist"),
    ],
)
def test_json_that_is_no_object_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}/config.json.*{message}"):
        read_json(file)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", [8], 1 << 31])
def test_sizes_in_a_configuration_are_positive_integers(value: Any) -> None:
    assert read_count({"n": 8}, "n") == 8
    assert read_count({"n": None}, "n", 3) == 3
    with pytest.raises(CheckpointError, match=r"n is .*, not a positive integer"):
        read_count({"n": value}, "n", 3)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "1e-5"])
def test_numbers_in_a_configuration_are_positive_and_finite(value: Any) -> None:
    assert read_number({"eps": 1e-5}, "eps", 1.0) == 1e-5
    assert read_number({}, "eps", 1.0) == 1.0
    with pytest.raises(CheckpointError, match=r"eps is .*, not a positive number"):
        read_number({"eps": value}, "eps", 1.0)


def test_missing_size_without_a_default_is_refused() -> None:
    with pytest.raises(CheckpointError, match="n is missing"):
        read_count({}, "n")


def test_language_part_of_a_configuration_wins() -> None:
    nested = {"model_type": "gemma3", "vocab_size": 1, "text_config": {"vocab_size": 2}}
    assert language_config(nested)["vocab_size"] == 2
    assert language_config({"vocab_size": 1}) == {"vocab_size": 1}


def test_names_are_those_of_the_repository_or_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = Path("/cache/hub/models--yuhuili--EAGLE3-LLaMA3.1/snapshots/0123abc")
    assert source_name(cached) == "yuhuili/EAGLE3-LLaMA3.1"
    (tmp_path / "head").mkdir()
    monkeypatch.chdir(tmp_path / "head")
    assert source_name(Path(".")) == "head"
    assert os.sep not in source_name(tmp_path / "head")


def test_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


def test_safetensors_written_by_the_reference_library_are_read(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy", reason="safetensors is the oracle")
    values = {"x": np.arange(4, dtype=np.float16), "y": np.zeros((0, 3), np.int32)}
    reference.save_file(values, tmp_path / "model.safetensors")
    weights = read_weights(tmp_path / "model.safetensors")
    assert all(np.array_equal(np.array(weights[name]), values[name]) for name in values)
