"""`mlx-eagle train --hosts`: other machines are started, train alike, and are missed by name."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import pytest

from mlx_eagle.cli.train_follower import TrainingFollower
from mlx_eagle.cli.train_hosts import without_hosts
from mlx_eagle.cluster.control import Channel
from mlx_eagle.cluster.messages import Train
from mlx_eagle.errors import EagleError
from mlx_eagle.training.run.processes import Processes
from training_files import write_conversations, write_tiny_target

OPTIONS = (
    *("--length", "32", "--steps", "2", "--draft-vocab", "300", "--heldout", "0.2"),
    *("--measure-every", "2", "--save-every", "1", "--head-bits", "none"),
)


def follower() -> TrainingFollower:
    nobody = cast(Any, None)
    return TrainingFollower(cast(Channel, nobody), 1, cast(mx.distributed.Group, object()))


def test_other_machines_need_no_hosts_file() -> None:
    said = ["--model", "m", "--hosts", "h.json", "--out", "o", "--hosts=h.json"]
    assert without_hosts(said) == ["--model", "m", "--out", "o"]


def test_a_machine_that_sees_other_files_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlx_eagle.training.run.processes.Processes.__init__", lambda *_: None)
    with pytest.raises(EagleError, match="there is no folder .*nowhere on this machine"):
        follower()._train(Train(arguments=[], folder=str(tmp_path / "nowhere")))
    order = Train(arguments=["--model", "m", "--data", "gone.jsonl"], folder=str(tmp_path))
    with pytest.raises(EagleError, match="gone.jsonl"):
        follower()._train(order)


def test_a_host_that_is_lost_is_named_where_others_wait_for_it() -> None:
    processes = Processes(None, lambda: "rank 1 on studio-2 has ended")
    with pytest.raises(EagleError, match="rank 1 on studio-2 has ended; what was saved stays"):
        processes._wait(lambda: False, lambda seconds: None)


def start(place: Path, *more: str) -> "subprocess.Popen[str]":
    """Start a training on two hosts that are this machine."""
    files = ("--model", "target", "--data", "texts.jsonl", "--out", "out")
    return subprocess.Popen(
        [sys.executable, "-m", "mlx_eagle.cli", "train", *files, *OPTIONS, *more],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_tiny_target(tmp_path / "target")
    write_conversations(tmp_path / "texts.jsonl", 16)
    local = '{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}'
    (tmp_path / "hosts.json").write_text(f"[{local}, {local}]")
    return tmp_path


def wait_for(process: "subprocess.Popen[str]") -> None:
    """Wait until a training has come to its end."""
    said = process.communicate(timeout=400)[1]
    assert process.returncode == 0, said


def children(process: "subprocess.Popen[str]") -> list[int]:
    """Return the processes that one has started."""
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in file.read_text().split()]


@pytest.mark.broad
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="children are found in /proc")
def test_a_host_that_is_killed_ends_a_training_by_name_and_what_was_saved_stays(
    place: Path,
) -> None:
    running = start(place, "--hosts", "hosts.json", "--max-updates", "400")
    try:
        while not list((place / "out").glob("checkpoint/update-*")):
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.1)
        (other,) = children(running)
        os.kill(other, signal.SIGKILL)
        killed = time.monotonic()
        said = running.communicate(timeout=60)[1]
        assert time.monotonic() - killed < 30
    finally:
        running.kill()
    assert running.returncode == 1, said
    assert "training on 2 hosts: here, 127.0.0.1" in said
    assert "error: rank 1 on 127.0.0.1 has ended" in said
    assert "the same command goes on" in said
    assert list((place / "out").glob("checkpoint/update-*"))
    assert not [file.name for file in (place / "out").glob(".process-0")]


@pytest.mark.broad
def test_two_hosts_make_the_head_that_two_launched_processes_make(place: Path) -> None:
    from toy_training import free_ports

    wait_for(start(place, "--hosts", "hosts.json", "--max-updates", "3"))
    ring = place / "ring.json"
    ring.write_text(str([[f"127.0.0.1:{port}"] for port in free_ports(2)]).replace("'", '"'))
    (place / "out").rename(place / "by-hosts")
    launched = []
    for rank in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLX_RANK", str(rank))
            patch.setenv("MLX_HOSTFILE", str(ring))
            launched.append(start(place, "--max-updates", "3"))
    for one in launched:
        wait_for(one)
    heads = [mx.load(str(place / f / "head" / "model.safetensors")) for f in ("by-hosts", "out")]
    assert heads[0].keys() == heads[1].keys()
    assert all(mx.array_equal(array, heads[1][name]) for name, array in heads[0].items())
