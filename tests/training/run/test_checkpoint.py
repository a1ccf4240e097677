"""Checkpoints: whole or not at all, strict, and refused for another training."""

import json
import resource
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.training.options import LoopOptions
from mlx_eagle.training.run.checkpoint import (
    Checkpoint,
    load_checkpoint,
    newest_checkpoint,
    optimizer_arrays,
    restore,
    save_checkpoint,
    trained_arrays,
)
from mlx_eagle.training.run.optimizer import make_optimizer, set_rates
from toy_training import ToyHead

FINGERPRINT: dict[str, Any] = {"options": {"batch": 4, "taps": (1, 2)}, "data": "abc"}


def made(update: int = 3, **changes: Any) -> Checkpoint:
    """A checkpoint of the toy after one update."""
    head = ToyHead()
    optimizer = make_optimizer(LoopOptions(), head)
    set_rates(optimizer, (0.1, 0.1))
    optimizer.update(head, head.trainable_parameters())
    whole = Checkpoint(update, trained_arrays(head), optimizer_arrays(optimizer), {})
    return whole._replace(**changes)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    saved = made(measured={"n_alpha": [0.1, 1 / 3]})
    save_checkpoint(tmp_path / "all", saved, FINGERPRINT)
    found = load_checkpoint(tmp_path / "all", FINGERPRINT)
    assert found is not None
    assert (found.update, found.measured) == (3, {"n_alpha": [0.1, 1 / 3]})
    head = ToyHead()
    optimizer = make_optimizer(LoopOptions(), head)
    restore(found, head, optimizer)
    pairs = ((trained_arrays(head), saved.weights), (optimizer_arrays(optimizer), saved.optimizer))
    for ours, theirs in pairs:
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(np.array(ours[k]), np.array(theirs[k])) for k in ours)


def test_no_folder_and_an_empty_one_have_no_checkpoint(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "none", {}) is None
    assert load_checkpoint(tmp_path, {}) is None


def test_a_new_checkpoint_takes_the_place_of_all_before_and_of_what_a_kill_has_left(
    tmp_path: Path,
) -> None:
    for update in (3, 9, 10):
        out = save_checkpoint(tmp_path, made(update), FINGERPRINT)
        (tmp_path / ".update-00000004.abcd.partial").mkdir(exist_ok=True)
    save_checkpoint(tmp_path, made(100), FINGERPRINT)
    assert [file.name for file in tmp_path.iterdir()] == ["update-00000100"]
    assert out.name == "update-00000010"


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(tmp_path: Path) -> None:
    before = save_checkpoint(tmp_path, made(1), FINGERPRINT)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(EagleError, match=r"^cannot write the checkpoint of update 2 [^\n]*$"):
            save_checkpoint(tmp_path, made(2), FINGERPRINT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [before]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"batch": 8, "taps": (1, 2)}}, "another options.batch: 4 there, 8 here"),
        ({"options": {"batch": 4, "taps": (1, 3)}}, r"options.taps: \[1, 2\] there, \[1, 3\] here"),
        ({"data": "xyz"}, "another data: abc there, xyz here"),
        ({"head": 1}, "another head: absent there, 1 here"),
    ],
)
def test_another_training_is_refused_by_the_first_difference(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, made(), FINGERPRINT)
    with pytest.raises(EagleError, match=message):
        load_checkpoint(tmp_path, FINGERPRINT | change)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {}}, "weights .* 'layers.0.bias'"),
        ({"weights": made().weights | {"more": mx.zeros(1)}}, "weights .* 'more'"),
        ({"weights": made().weights | {"layers.0.bias": mx.zeros(3)}}, "'layers.0.bias'"),
        (
            {"weights": made().weights | {"layers.0.bias": mx.zeros(12, mx.float16)}},
            "'layers.0.bias'",
        ),
        ({"optimizer": {}}, "optimizer state .* and .* more"),
    ],
)
def test_arrays_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    head = ToyHead()
    with pytest.raises(CheckpointError, match=message):
        restore(made(**changes), head, make_optimizer(LoopOptions(), head))


def test_a_checkpoint_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    out = save_checkpoint(tmp_path, made(), FINGERPRINT)
    file = out / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="weights.safetensors"):
        load_checkpoint(tmp_path, FINGERPRINT)


def test_another_version_is_refused(tmp_path: Path) -> None:
    out = save_checkpoint(tmp_path, made(), FINGERPRINT)
    facts = json.loads((out / "checkpoint.json").read_text())
    (out / "checkpoint.json").write_text(json.dumps(facts | {"version": 99}))
    with pytest.raises(CheckpointError, match="version 1"):
        load_checkpoint(tmp_path, FINGERPRINT)


def test_the_newest_is_found_by_its_number(tmp_path: Path) -> None:
    for update in (9, 100, 20):
        (tmp_path / f"update-{update:08d}").mkdir()
    assert newest_checkpoint(tmp_path) == tmp_path / "update-00000100"
