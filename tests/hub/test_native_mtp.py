"""Layers out of checkpoints on the hub: which bytes are fetched, and what `--head mtp` means."""

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

import mtp_files
from hub_settings import hub_at
from mlx_eagle.errors import EagleError, HubError
from mlx_eagle.files.json_files import read_json
from mlx_eagle.hub.download import fetch, list_files
from mlx_eagle.hub.head_choice import choose_head

FAMILY = "qwen3_5"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """A checkpoint in two shards, most of which is not the layer."""
    layer = mtp_files.random_layer(FAMILY)
    return mtp_files.save_original(tmp_path / "original", FAMILY, layer)


def serve(fake_hub: Any, folder: Path) -> None:
    fake_hub.files = {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_only_index_headers_and_the_layers_own_bytes_are_fetched(
    fake_hub: Any, original: Path, tmp_path: Path
) -> None:
    serve(fake_hub, original)
    calls: list[tuple[str, int, int]] = []
    with hub_at(fake_hub.url, tmp_path / "home"):
        listed = list_files("mtp:owner/model")
        fake_hub.n_bytes = 0
        folder = fetch("mtp:owner/model", progress=lambda *call: calls.append(call))
        first = fake_hub.n_bytes
        again = fetch("mtp:owner/model")
    shard = original / "model-00002-of-00002.safetensors"
    (header,) = struct.unpack("<Q", shard.read_bytes()[:8])
    small = ["config.json", "model.safetensors.index.json"]
    own = sum(array.nbytes for array in mtp_files.random_layer(FAMILY).values())
    assert first == sum((original / name).stat().st_size for name in small) + 8 + header + own
    assert set(fake_hub.downloads()) == {*small, shard.name}
    assert fake_hub.n_bytes == first and again == folder
    assert calls[-1] == ("download mtp:owner/model", own, own)
    assert listed.sizes == {"model.safetensors": own} and listed.missing == own
    tensors = mx.load(str(folder / "model.safetensors"))
    for name, value in mtp_files.random_layer(FAMILY).items():
        assert np.array_equal(np.array(tensors[f"mtp.{name}"]), value)


def test_without_the_hub_the_copy_in_the_cache_is_used(
    fake_hub: Any, original: Path, tmp_path: Path
) -> None:
    serve(fake_hub, original)
    told: list[str] = []
    with hub_at(fake_hub.url, tmp_path / "home"):
        folder = fetch("mtp:owner/model")
    with hub_at(fake_hub.url, tmp_path / "home", HF_HUB_OFFLINE="1"):
        assert fetch("mtp:owner/model", notify=told.append) == folder
        with pytest.raises(HubError, match="owner/other"):
            fetch("mtp:owner/other")
    assert len(told) == 1 and "the copy in the cache is used" in told[0]


def test_a_hub_that_sends_whole_files_alone_is_refused_before_they_come(
    fake_hub: Any, original: Path, tmp_path: Path
) -> None:
    serve(fake_hub, original)
    fake_hub.sends_parts = False
    with (
        hub_at(fake_hub.url, tmp_path / "home"),
        pytest.raises(HubError, match="sends no parts of owner/model .*answered 200"),
    ):
        fetch("mtp:owner/model")


DAMAGED = {
    "header too long": (lambda data: struct.pack("<Q", 1 << 40) + data[8:], "header claims"),
    "no JSON": (lambda data: data[:8] + b"[" + data[9:], "header is malformed"),
    "cut off": (lambda data: data[:-4096], "lie outside of it"),
    "empty": (lambda data: b"", "header claims"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_shards_are_refused(case: str, original: Path) -> None:
    damage, message = DAMAGED[case]
    shard = original / "model-00002-of-00002.safetensors"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(EagleError, match=message):
        fetch(f"mtp:{original}")


def target_with_layer(folder: Path) -> Path:
    model, layer = mtp_files.make_target(FAMILY), mtp_files.random_layer(FAMILY)
    return mtp_files.save_target(folder, FAMILY, model, mtp_files.with_ones(layer))


@pytest.mark.parametrize("head", ["mtp", None])
def test_a_targets_own_layer_is_taken_by_its_word_and_by_itself(
    head: str | None, tmp_path: Path
) -> None:
    target = target_with_layer(tmp_path / "target")
    choice = choose_head(target, head, target, notify=lambda line: None)
    assert choice.folder is not None and choice.is_named is (head == "mtp")
    config = read_json(choice.folder / "config.json")
    assert config["algorithm"] == "mtp" and config["quantization"]["bits"] == 4
    assert choose_head(target, head, target).folder == choice.folder


def test_norms_are_compared_with_the_original_of_a_known_target(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = target_with_layer(tmp_path / "target")
    monkeypatch.setattr("mlx_eagle.hub.head_choice.original_of", lambda target: str(original))
    choice = choose_head(target, "mtp", target, notify=lambda line: None)
    assert choice.folder is not None
    config = read_json(choice.folder / "config.json")
    assert config["norms_summed"] == [] and config["doubts"] == {}


def test_a_target_without_a_layer_says_where_one_may_be(tmp_path: Path) -> None:
    model = mtp_files.make_target(FAMILY)
    target = mtp_files.save_target(tmp_path / "target", FAMILY, model)
    assert choose_head(target, None, target).reason == "no head was given"
    with pytest.raises(HubError, match="no multi-token prediction layer in its files.*--head mtp:"):
        choose_head(target, "mtp", target)
    assert json.loads((target / "config.json").read_text())["model_type"] == FAMILY
