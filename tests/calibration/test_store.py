"""What is kept between runs: found again where it belongs, and ignored where it does not."""

import json
import os
from pathlib import Path

import pytest

from mlx_eagle.calibration.store import Identity, Records, this_machine
from mlx_eagle.errors import EagleError
from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import Costs

COSTS = Costs((64, 2048), {1: (1.0, 1.5), 2: (1.2, 1.9)}, (0.9, 1.4), (0.1, 0.15), 0.01)
MACHINE = {"chip": "M9", "device": "gpu", "mlx": "0.32.0"}
PAIR = {"target": "abc", "head": "def"}


def records(folder: Path, **changes: str) -> Records:
    machine = {k: changes.get(k, v) for k, v in MACHINE.items()}
    return Records(folder, Identity(machine, {k: changes.get(k, v) for k, v in PAIR.items()}))


def test_costs_are_found_again_with_the_day(tmp_path: Path) -> None:
    assert records(tmp_path).costs() is None
    records(tmp_path).save_costs(COSTS)
    found = records(tmp_path).costs()
    assert found is not None and found[0] == COSTS
    assert len(found[1]) == len("2026-11-21")


@pytest.mark.parametrize("what", ["chip", "device", "mlx", "target", "head"])
def test_costs_of_another_machine_or_pair_are_not_used(tmp_path: Path, what: str) -> None:
    records(tmp_path).save_costs(COSTS)
    assert records(tmp_path, **{what: "another"}).costs() is None


def test_acceptance_follows_the_pair_to_another_machine(tmp_path: Path) -> None:
    learnt = Acceptance()
    for _ in range(30):
        learnt.observe([0.6, 0.2], chosen=0)
    records(tmp_path).save_acceptance({"greedy": learnt})
    elsewhere = records(tmp_path, chip="M10")
    known = elsewhere.acceptance("greedy").children([0.6])[0]
    assert known > 0.9 > Acceptance().children([0.6])[0]
    assert elsewhere.acceptance("sampled").children([0.6]) == Acceptance().children([0.6])
    assert records(tmp_path, head="x").acceptance("greedy").children([0.6])[0] < 0.9


def test_other_ways_of_choosing_tokens_stay_on_record(tmp_path: Path) -> None:
    learnt = Acceptance()
    for _ in range(30):
        learnt.observe([0.6], chosen=0)
    records(tmp_path).save_acceptance({"greedy": learnt})
    records(tmp_path).save_acceptance({"sampled": Acceptance()})
    assert records(tmp_path).acceptance("greedy").children([0.6])[0] > 0.9


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"version": 1}', '{"version": 1, "costs": {"verify": 3}}', "\x00\xff"]
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    kept = records(tmp_path)
    kept.save_costs(COSTS)
    kept.save_acceptance({"greedy": Acceptance()})
    for file in (kept.costs_file, kept.acceptance_file):
        file.write_text(text)
    assert kept.costs() is None
    assert kept.acceptance("greedy").children([0.6]) == Acceptance().children([0.6])


def test_a_file_of_another_version_is_as_good_as_none(tmp_path: Path) -> None:
    kept = records(tmp_path)
    kept.save_costs(COSTS)
    fields = json.loads(kept.costs_file.read_text())
    kept.costs_file.write_text(json.dumps(fields | {"version": 2}))
    assert kept.costs() is None


def test_a_folder_that_cannot_be_written_to_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "costs").write_text("a file where a folder belongs")
    with pytest.raises(EagleError, match="MLX_EAGLE_CACHE names another folder"):
        records(tmp_path).save_costs(COSTS)


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    kept = records(tmp_path)
    kept.save_costs(COSTS)
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(EagleError, match="No space left on device"):
        kept.save_costs(COSTS)
    assert [file.name for file in kept.costs_file.parent.iterdir()] == [kept.costs_file.name]
    assert kept.costs() is not None


def test_the_machine_is_told_by_chip_device_and_mlx() -> None:
    assert set(this_machine()) == {"chip", "device", "mlx", "mlx-lm"}
    assert all(this_machine().values())


def test_another_macos_may_have_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.mac_ver", lambda: ("", ("", "", ""), ""))
    assert "macos" not in this_machine()
    monkeypatch.setattr("platform.mac_ver", lambda: ("26.2", ("", "", ""), "arm64"))
    assert this_machine()["macos"] == "26.2"
