"""What MLX is told of the other hosts: the variables of `mlx.launch`, for the ring and JACCL."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_eagle.cluster import launch
from mlx_eagle.cluster.hosts import Hosts, read_hosts
from mlx_eagle.cluster.launch import how_to_join, start_cluster
from mlx_eagle.cluster.messages import Join, decode_orders, encode_orders
from mlx_eagle.cluster.ring import environment
from mlx_eagle.errors import ClusterError

DEVICES = [[None, "rdma_en3", "rdma_en4"], ["rdma_en3", None, "rdma_en5"], ["a", "b", None]]


def cabled(folder: Path, backend: str = "jaccl") -> Hosts:
    places = ["127.0.0.1", "10.0.0.1", "10.0.0.2"]
    hosts = [
        {"ssh": f"studio-{rank}", "ips": [place], "rdma": devices}
        for rank, (place, devices) in enumerate(zip(places, DEVICES, strict=True))
    ]
    file = folder / "hosts.json"
    file.write_text(json.dumps({"backend": backend, "envs": ["A=1"], "hosts": hosts}))
    return read_hosts(file)


def told(hosts: Hosts) -> Join:
    """What a follower is told, once it has come over the socket."""
    (order,) = decode_orders(encode_orders([how_to_join(hosts)]))
    assert isinstance(order, Join)
    return order


class StartedError(Exception):
    """Raised where MLX would start a process on other machines."""


def launched_by_mlx(
    hosts: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, dict[str, str], dict[str, str]]]:
    """Return what MLX's own launcher would start: rank, variables, files by variable."""
    theirs: Any = pytest.importorskip("mlx._distributed_utils.launch")
    found = []

    def start(kind: Any, arguments: list[Any], verbose: bool) -> None:
        for (rank, _, _, _, files, env, _), _ in arguments:
            found.append((rank, dict(each.split("=", 1) for each in env), files))
        raise StartedError

    # It hands on the size of a terminal, where there is one.
    monkeypatch.setattr(
        theirs.shutil, "get_terminal_size", lambda size=(0, 0): os.terminal_size(size)
    )
    monkeypatch.setattr(theirs, "_launch_with_io", start)
    monkeypatch.setattr(sys, "argv", ["mlx.launch", "--hostfile", str(hosts), "--", "true"])
    with pytest.raises(StartedError):
        theirs.main()
    return found


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves the file open
@pytest.mark.parametrize("backend", ["jaccl", "jaccl-ring"])
def test_a_follower_sets_what_mlx_launch_sets_for_jaccl(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = told(cabled(tmp_path, backend))
    theirs = launched_by_mlx(tmp_path / "hosts.json", tmp_path, monkeypatch)
    assert len(theirs) == 3
    for rank, variables, files in theirs:
        ours = environment(rank, join, tmp_path)
        assert ours.pop("MLX_RANK") == str(rank)
        devices = json.loads(Path(ours.pop("MLX_IBV_DEVICES")).read_text())
        assert devices == json.loads(files["MLX_IBV_DEVICES"]) == DEVICES
        host, port = ours.pop("MLX_JACCL_COORDINATOR").split(":")
        assert host == variables.pop("MLX_JACCL_COORDINATOR").split(":")[0] == "127.0.0.1"
        assert int(port) > 0
        assert ours | {"A": "1"} == variables


def test_rank_0_and_a_follower_over_ssh_have_the_variables_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []

    def start(command: list[str], **more: Any) -> None:
        commands.append(command)
        raise OSError("not started")

    hosts = cabled(tmp_path)
    monkeypatch.setenv("A", "0")
    monkeypatch.setattr(launch, "check_backend", lambda name: None)
    monkeypatch.setattr(launch.subprocess, "Popen", start)
    monkeypatch.setattr(launch, "_JOINED", [])
    with pytest.raises(ClusterError, match="ssh cannot be run"):
        start_cluster(hosts)
    [command] = commands
    assert command[0] == "ssh"
    assert command[-2] == "studio-1"
    assert command[-1].startswith("env A=1 ")
    assert os.environ["A"] == "1"


def test_the_ring_is_told_by_a_file_of_addresses(tmp_path: Path) -> None:
    join = Join(ring=[["127.0.0.1:5"], ["127.0.0.1:6"]])
    variables = environment(1, join, tmp_path)
    assert variables["MLX_RANK"] == "1"
    assert json.loads(Path(variables["MLX_HOSTFILE"]).read_text()) == join.ring


@pytest.mark.skipif(mx.distributed.is_available("jaccl"), reason="JACCL is there")
def test_jaccl_is_refused_by_name_where_mlx_does_not_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_JOINED", [])
    with pytest.raises(ClusterError, match=r"asks for jaccl.* macOS 26\.2 .* joins hosts over TCP"):
        start_cluster(cabled(tmp_path))
