"""Weights found in a folder, and safetensors headers: read only if nothing about them is odd."""

import json
import os
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.convert.checkpoint import read_manifest, read_weights, require_finite
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.folders import MAX_BYTES_VARIABLE, find_weights, source_name
from mlx_eagle.files.json_files import language_config, read_count, read_json, read_number
from mlx_eagle.files.plain_files import check_file, hash_file
from mlx_eagle.files.quoting import listed
from mlx_eagle.files.safetensors import TensorInfo, read_header

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
    for read in (read_header, read_weights):
        with pytest.raises(CheckpointError, match=f"model.safetensors is not.*{message}") as caught:
            read(file)
        assert str(caught.value).isprintable()


def test_file_without_a_header_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match="not a sound safetensors file"):
        read_header(file)


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
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "https://example.org/model.safetensors",
        "model\0.safetensors",
        "model\n.safetensors",
        ".model.safetensors",
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
    with pytest.raises(CheckpointError, match="model lacks 'model-00009-of-00009.safetensors'"):
        find_weights(folder)


def test_index_that_names_thousands_of_files_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", {f"{i}": f"{i}.safetensors" for i in range(10_001)})
    with pytest.raises(CheckpointError, match="names 10001 files, more than 10000"):
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


def test_single_pt_file_is_the_weights_where_there_are_no_others(tmp_path: Path) -> None:
    (tmp_path / "medusa_lm_head.pt").touch()
    assert [file.name for file in find_weights(tmp_path)] == ["medusa_lm_head.pt"]
    (tmp_path / "optimizer.pt").touch()
    with pytest.raises(CheckpointError, match="has 'medusa_lm_head.pt', 'optimizer.pt': keep"):
        find_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert [file.name for file in find_weights(tmp_path)] == ["model.safetensors"]


def cached(root: Path) -> Path:
    """Return a snapshot as the Hugging Face cache stores it: links to the repository's blobs."""
    repo = root / "models--owner--head"
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    write_safetensors(repo / "blobs" / "abc", {"x": entry()})
    (repo / "blobs" / "def").write_text("{}")
    (snapshot / "model.safetensors").symlink_to("../../blobs/abc")
    (snapshot / "config.json").symlink_to("../../blobs/def")
    return snapshot


def test_links_of_the_cache_and_within_a_folder_are_followed(tmp_path: Path) -> None:
    snapshot = cached(tmp_path)
    (tmp_path / "elsewhere").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "elsewhere"):
        assert read_json(folder / "config.json") == {}
        assert list(read_manifest(folder)) == ["x"]
        assert list(read_weights(folder / "model.safetensors")) == ["x"]
    (tmp_path / "shown.json").write_text("{}")
    (tmp_path / "config.json").symlink_to("shown.json")
    assert read_json(tmp_path / "config.json") == {}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin", "x.pt"])
@pytest.mark.parametrize(
    "goal",
    ["../../secret", "../other/abc", "../../../models--a--b/blobs/abc", "/dev/zero", "/etc/passwd"],
)
def test_link_that_leads_out_of_the_folder_or_its_repository_is_refused_by_name(
    tmp_path: Path, name: str, goal: str
) -> None:
    snapshot = cached(tmp_path)
    for file in snapshot.iterdir():
        file.unlink()
    (tmp_path / "secret").write_text("{}")
    (snapshot / name).symlink_to(goal)
    for read in (check_file, read_json, read_header, read_weights):
        with pytest.raises(CheckpointError, match=f"{name} is a link to .*outside of its folder"):
            read(snapshot / name)
    if name != "config.json":
        with pytest.raises(CheckpointError, match=f"{name} is a link to .*outside of its folder"):
            find_weights(snapshot)


def test_blob_that_is_itself_a_link_out_of_the_cache_is_refused(tmp_path: Path) -> None:
    snapshot = cached(tmp_path)
    blob = tmp_path / "models--owner--head" / "blobs" / "def"
    blob.unlink()
    blob.symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="config.json is a link to '/etc/passwd'"):
        read_json(snapshot / "config.json")


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    (tmp_path / "config.json").mkdir()
    (tmp_path / "circle.json").symlink_to("circle.json")
    for read in (find_weights, read_manifest):
        with pytest.raises(CheckpointError, match="model.safetensors is not a regular file"):
            read(tmp_path)
    with pytest.raises(CheckpointError, match="model.safetensors is not a regular file"):
        read_weights(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="config.json is not a regular file"):
        read_json(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="circle.json is not readable"):
        read_json(tmp_path / "circle.json")


def test_weights_beyond_the_limit_are_refused_with_the_way_to_raise_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        mx.save_safetensors(str(tmp_path / name), {name: mx.zeros(2)})
    n_bytes = sum(file.stat().st_size for file in tmp_path.iterdir())
    monkeypatch.setenv(MAX_BYTES_VARIABLE, str(n_bytes - 1))
    with pytest.raises(
        CheckpointError, match=f"{n_bytes} bytes .* set MLX_EAGLE_MAX_BYTES={n_bytes}"
    ):
        read_manifest(tmp_path)
    monkeypatch.setenv(MAX_BYTES_VARIABLE, str(n_bytes))
    assert len(read_manifest(tmp_path)) == 2
    for text in ("64GB", "-1", "", "\u0663", "9" * 19):
        monkeypatch.setenv(MAX_BYTES_VARIABLE, text)
        with pytest.raises(EagleError, match="not a number of bytes"):
            find_weights(tmp_path)


def test_lists_in_errors_stay_short() -> None:
    assert listed([]) == ""
    assert listed("abc") == "a, b, c"
    assert listed(map(str, range(20))) == "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"
    assert listed("abc", most=2) == "a, b and 1 more"


def test_weights_that_are_not_finite_are_refused_by_a_bounded_list_of_names() -> None:
    require_finite(TENSORS)
    broken = {f"w{i}": mx.array([0.0, value]) for i, value in enumerate((float("nan"), 1e400))}
    with pytest.raises(CheckpointError, match="not finite numbers in w0, w1:"):
        require_finite(TENSORS | broken)
    with pytest.raises(CheckpointError, match="and 992 more:"):
        require_finite({f"{i:04}": broken["w0"] for i in range(1000)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not readable JSON"),
        (b"\xff\xfe{", "not readable JSON"),
        (b'{"x":' * 200_000, "not readable JSON"),
        (b'{"x":' * 25 + b"1" + b"}" * 25, "nested more than 24 deep"),
        (b'{"x":1,"x":1}', "key 'x' comes twice"),
        (b'{"x":{"\xc3\xa9":1,"\\u00e9":1}}', "key '\xe9' comes twice"),
        (b'{"x":"\\udc00"}', "surrogates"),
        (b'{"x":[' + b"[]," * 600_000, "more than 500000 objects and lists"),
        (b'{"x":' + b"9" * 41 + b"}", "integer of 41 digits"),
        (b" " * ((8 << 20) + 1), "larger than"),
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


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", [8], 1 << 31, -0.0, 1e400, 10**40])
def test_sizes_in_a_configuration_are_positive_integers(value: Any) -> None:
    assert read_count({"n": 8}, "n") == 8
    assert read_count({"n": None}, "n", 3) == 3
    with pytest.raises(CheckpointError, match=r"n is .*, not a positive integer"):
        read_count({"n": value}, "n", 3)


def test_sizes_in_a_configuration_may_have_a_bound_of_their_own() -> None:
    assert read_count({"n": 64}, "n", most=64) == 64
    with pytest.raises(CheckpointError, match="n is 65, not a positive integer up to 64"):
        read_count({"n": 65}, "n", most=64)


@pytest.mark.parametrize(
    "value",
    [0, -1.0, -0.0, float("nan"), float("inf"), 1e15, 10**40, 5e-324, True, "1e-5", [1.0]],
)
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
