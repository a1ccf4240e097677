"""The loop: what it resumes, refuses, averages and reports; on a toy that takes milliseconds."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

import toy_training
from cases import broad
from mlx_eagle.errors import EagleError
from mlx_eagle.training.run.checkpoint import load_checkpoint, newest_checkpoint
from mlx_eagle.training.run.folder import MEASUREMENTS, RunFolder
from mlx_eagle.training.run.folder import UPDATES as UPDATES_TABLE
from mlx_eagle.training.run.loop import Outcome, Run, train
from mlx_eagle.training.run.reports import Measurement, UpdateReport
from toy_training import STEPS, UPDATES, ToyHead, objective, started_in_two, toy_run

PROGRAM = [sys.executable, toy_training.__file__]


def arrays_of(run: Run) -> dict[str, np.ndarray]:
    weights = dict(tree_flatten(run.head.trainable_parameters()))
    return {name: np.array(weight) for name, weight in weights.items()}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(np.array(ours[name]), np.array(theirs[name])), name


def table(folder: Path, name: str) -> list[dict[str, float]]:
    rows = RunFolder.open(folder).rows(name)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_same_training(ours: Path, theirs: Path) -> None:
    """Weights, the optimizer's state, tables and the best weights agree to the last bit."""
    fingerprint = toy_run(ours).fingerprint
    for place in ("checkpoint", "best"):
        found = [load_checkpoint(folder / place, fingerprint) for folder in (ours, theirs)]
        assert found[0] is not None and found[1] is not None
        assert found[0].update == found[1].update
        assert found[0].measured == found[1].measured
        assert_same(found[0].weights, found[1].weights)
        assert_same(found[0].optimizer, found[1].optimizer)
    for name in (UPDATES_TABLE, MEASUREMENTS):
        assert table(ours, name) == table(theirs, name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "undisturbed"
    assert train(toy_run(folder)) == Outcome(UPDATES, False)
    return folder


@pytest.mark.parametrize("seed", [0, *map(broad, range(1, 10))])
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(
    seed: int, undisturbed: Path, tmp_path: Path
) -> None:
    folder, wait = tmp_path / "run", random.Random(seed).uniform(0, 0.5)
    program = subprocess.Popen([*PROGRAM, folder, "0.03", "{}"], stdout=subprocess.PIPE)
    assert program.stdout is not None
    with program, program.stdout:
        program.stdout.readline()
        while not folder.exists():
            time.sleep(0.001)
        time.sleep(wait)
        program.kill()
    assert train(toy_run(folder)).update == UPDATES
    assert_same_training(folder, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_the_update_in_flight_and_saves(
    number: signal.Signals, undisturbed: Path, tmp_path: Path
) -> None:
    def watch(report: UpdateReport | Measurement) -> None:
        if report.update == 5:
            os.kill(os.getpid(), number)  # while update 6 is not begun: it is the one in flight

    before = signal.getsignal(number)
    run = toy_run(tmp_path / "run", watch=watch)
    assert train(run) == Outcome(6, True)
    assert signal.getsignal(number) is before
    saved = load_checkpoint(run.folder.checkpoints, run.fingerprint)
    assert saved is not None and saved.update == 6
    assert_same(saved.weights, arrays_of(run))
    assert train(toy_run(run.folder.path)) == Outcome(UPDATES, False)
    assert_same_training(run.folder.path, undisturbed)


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    def watch(report: UpdateReport | Measurement) -> None:
        if report.update == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(toy_run(tmp_path / "run", watch=watch))


def test_a_training_that_is_done_does_nothing_more(undisturbed: Path) -> None:
    run = toy_run(undisturbed)
    assert train(run) == Outcome(UPDATES, False)
    saved = load_checkpoint(run.folder.checkpoints, run.fingerprint)
    assert saved is not None
    assert_same(saved.weights, arrays_of(run))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_refused_and_the_checkpoint_stays(
    bad: float, tmp_path: Path
) -> None:
    run = toy_run(tmp_path / "run")
    whole = run.data.batches

    def batches(update: int) -> list[Any]:
        found = whole(update)
        return [b._replace(taps=b.taps + bad) for b in found] if update == 7 else found

    run.data.batches = batches  # type: ignore[method-assign]
    with pytest.raises(EagleError, match=r"^update 8: the loss is .* the checkpoint of update 6"):
        train(run)
    found = load_checkpoint(run.folder.checkpoints, run.fingerprint)
    assert found is not None and found.update == 6
    assert all(np.isfinite(np.array(weight)).all() for weight in found.weights.values())
    assert table(run.folder.path, UPDATES_TABLE)[-1]["update"] == 7


def test_a_checkpoint_of_other_options_is_refused_by_name(undisturbed: Path) -> None:
    with pytest.raises(EagleError, match="another seed: 0 there, 1 here"):
        train(toy_run(undisturbed, seed=1))


def test_reports_say_what_was_done(tmp_path: Path) -> None:
    seen: list[UpdateReport | Measurement] = []
    run = toy_run(tmp_path / "run", watch=seen.append)
    train(run)
    updates = [report for report in seen if isinstance(report, UpdateReport)]
    assert [report.update for report in updates] == list(range(1, UPDATES + 1))
    assert {(r.n_updates, r.tokens, len(r.n_alpha)) for r in updates} == {(UPDATES, 20, STEPS)}
    assert updates[0].loss == pytest.approx(sum(updates[0].losses), rel=1e-6)
    assert updates[3].rates == (1e-3, 0.02)
    measured = [report for report in seen if isinstance(report, Measurement)]
    assert [report.update for report in measured] == [4, 8, 12]
    best = max(measured, key=lambda report: report.acceptance_length)
    assert newest_checkpoint(run.folder.best) == run.folder.best / f"update-{best.update:08d}"


@pytest.mark.parametrize("is_compiled", [False, broad(True)])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_loss_falls(is_compiled: bool, optimizer: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "optimizer": optimizer,
        "learning_rate": 0.01,
        "n_updates": 60,
        "noise": 0.0,
    }
    changes |= {"save_every": 100, "measure_every": 100}
    train(toy_run(tmp_path / "run", is_compiled=is_compiled, **changes))
    losses = [row["loss"] for row in table(tmp_path / "run", UPDATES_TABLE)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_the_figures_of_an_update_are_those_of_its_batches(tmp_path: Path) -> None:
    seen: list[Any] = []
    run = toy_run(tmp_path / "run", watch=seen.append, noise=0.0, n_updates=1)
    train(run)
    plain = [objective(ToyHead(), 0.0)(batch) for batch in run.data.batches(0)]
    assert seen[0].loss == pytest.approx(np.mean([float(loss) for loss, _ in plain]), rel=1e-6)
    hits = sum(np.array(figures.hits) for _, figures in plain)
    assert seen[0].n_alpha == pytest.approx(hits / sum(np.array(f.counted) for _, f in plain))


def test_accumulated_batches_equal_one_of_their_rows(tmp_path: Path) -> None:
    """An update of 2 batches of 2 rows is that of 1 batch of 4."""
    halves = toy_run(tmp_path / "halves", noise=0.0)
    whole = toy_run(tmp_path / "whole", noise=0.0)

    class Whole:
        def batches(self, update: int) -> list[Any]:
            parts = zip(*halves.data.batches(update), strict=True)
            return [type(halves.data.batches(0)[0])(*(mx.concatenate(list(p)) for p in parts))]

        heldout = halves.data.heldout

    train(halves)
    train(Run(**{**vars(whole), "data": Whole()}))
    for ours, theirs in zip(arrays_of(halves).values(), arrays_of(whole).values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_compiled_it_trains_alike_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    plain, whole = toy_run(tmp_path / "plain"), toy_run(tmp_path / "whole", is_compiled=True)
    train(plain)
    train(whole)
    for ours, theirs in zip(arrays_of(whole).values(), arrays_of(plain).values(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)

    def watch(report: UpdateReport | Measurement) -> None:
        if report.update == 5:
            raise RuntimeError("the machine stops here")

    with pytest.raises(RuntimeError, match="stops here"):
        train(toy_run(tmp_path / "parts", is_compiled=True, watch=watch))
    train(toy_run(tmp_path / "parts", is_compiled=True))
    assert_same_training(tmp_path / "parts", tmp_path / "whole")


def test_without_held_out_texts_nothing_is_measured(tmp_path: Path) -> None:
    run = toy_run(tmp_path / "run")
    run.data.heldout = lambda: []  # type: ignore[method-assign]
    assert train(run).update == UPDATES
    assert newest_checkpoint(run.folder.best) is None


def train_in_two(folder: Path, **changes: Any) -> list[dict[str, Any]]:
    """Train in two processes on loopback; returns the weights that each ends with."""
    with started_in_two(folder, **changes) as programs:
        said = [program.communicate(timeout=60)[1] for program in programs]
        assert [program.returncode for program in programs] == [0, 0], said
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    first, second = train_in_two(tmp_path / "two", noise=0.0, accumulate=1)
    assert_same(first, second)
    alone = toy_run(tmp_path / "one", noise=0.0, accumulate=1, batch=4)
    train(alone)
    for name, weight in arrays_of(alone).items():
        np.testing.assert_allclose(first[name], weight, rtol=2e-4, atol=2e-5)
    ours, theirs = (
        [(row["update"], row["tokens"], row["n_alpha_0"]) for row in table(place, UPDATES_TABLE)]
        for place in (tmp_path / "two" / "0", tmp_path / "one")
    )
    assert ours == theirs
    assert not (tmp_path / "two" / "1" / "checkpoint").exists()


@pytest.mark.broad
def test_two_processes_go_on_from_what_the_first_has_saved(tmp_path: Path) -> None:
    train_in_two(tmp_path / "parts", noise=0.0, n_updates=6, decay_from=1.0)
    again = train_in_two(tmp_path / "parts", noise=0.0, decay_from=1.0)
    whole = train_in_two(tmp_path / "whole", noise=0.0, decay_from=1.0)
    for ours, theirs in zip(again, whole, strict=True):
        assert_same(ours, theirs)
