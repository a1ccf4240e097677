"""Weights of a folder read together, and links and files that none of the readers follows."""

import json
import os
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_eagle.convert.checkpoint import read_manifest, read_weights, require_finite
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.folders import find_weights
from mlx_eagle.files.json_files import read_json
from mlx_eagle.files.plain_files import check_file, hash_file
from mlx_eagle.files.safetensors import read_header


def test_shards_are_read_together(tmp_path: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for tensor, name in zip("ab", names, strict=True):
        mx.save_safetensors(str(tmp_path / name), {tensor: mx.zeros(2)})
    index = {"metadata": {}, "weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(read_manifest(tmp_path)) == {"a", "b"}


def test_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("model-1.safetensors", "model-2.safetensors"):
        mx.save_safetensors(str(tmp_path / name), {"x": mx.zeros(2)})
    with pytest.raises(CheckpointError, match="'x' is in another file"):
        read_manifest(tmp_path)


def cached(root: Path) -> Path:
    """Return a snapshot as the Hugging Face cache stores it: links to the repository's blobs."""
    repo = root / "models--owner--head"
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    mx.save_safetensors(str(repo / "blobs" / "abc.safetensors"), {"x": mx.zeros(2)})
    (repo / "blobs" / "abc.safetensors").rename(repo / "blobs" / "abc")
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


def test_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


def test_weights_that_are_not_finite_are_refused_by_a_bounded_list_of_names() -> None:
    sound = {"a": mx.arange(6, dtype=mx.float16), "b": mx.array([True]), "c": mx.array([3])}
    require_finite(sound)
    broken = {f"w{i}": mx.array([0.0, value]) for i, value in enumerate((float("nan"), 1e400))}
    with pytest.raises(CheckpointError, match="not finite numbers in w0, w1:"):
        require_finite(sound | broken)
    with pytest.raises(CheckpointError, match="and 992 more:"):
        require_finite({f"{i:04}": broken["w0"] for i in range(1000)})
