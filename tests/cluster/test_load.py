"""`load` with a hosts file, the command line, and processes that `mlx.launch` has started."""

import gc
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import mlx_eagle
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.cli.doctor import describe_hosts
from mlx_eagle.cluster.cluster import Cluster
from mlx_eagle.cluster.leader import LeadingTarget
from mlx_eagle.cluster.messages import Load, Order, encode_orders
from mlx_eagle.errors import ClusterError, UnsupportedTargetError
from mlx_eagle.load_options import PIPELINE, TENSOR
from mlx_eagle.loading import load_with_head
from shards import write_tiny
from training_files import write_tiny_target

QUESTION = "What does zip do?"
OPTIONS: dict[str, Any] = {"dtype": "float32", "calibrate": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_target(tmp_path_factory.mktemp("tiny") / "target")


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("hosts") / "hosts.json"
    file.write_text(json.dumps([{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}] * 2))
    return file


def conversations_saved(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Return how the conversations begin that are written down when a host is lost."""
    for call in cluster.watch.on_lost:
        call("a test")
    files = re.findall("written to (.*)", capfd.readouterr().err)
    said = [json.loads(Path(file).read_text())["messages"][0]["content"] for file in files]
    return sorted(said)


@pytest.mark.bitwise
def test_an_engine_on_two_hosts_answers_as_one_machine(
    cluster: Cluster, folder: Path, hosts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    alone = mlx_eagle.load(folder, "ngram", **OPTIONS)
    engine = mlx_eagle.load(folder, "ngram", hosts=hosts, **OPTIONS)
    assert isinstance(engine.target, LeadingTarget)
    assert engine.target.cluster is cluster
    assert engine.info.hosts.startswith("2 ranks (tensor): here, 127.0.0.1; ")
    assert engine.info.hosts in capfd.readouterr().err
    assert engine.kernels is not None and engine.kernels.status == "off"

    session, other = engine.session(), alone.session()
    said = [list(one.ask(QUESTION, max_tokens=5)) for one in (session, other)]
    assert [r.token for r in said[0]] == [r.token for r in said[1]]

    session.save(tmp_path / "talk")
    again = engine.load_session(tmp_path / "talk")  # its rows are read again
    said = [list(one.ask("And map?", max_tokens=3)) for one in (again, other)]
    assert [r.token for r in said[0]] == [r.token for r in said[1]]

    with_head = load_with_head(engine, folder, "ngram", hosts=hosts, **OPTIONS)
    more = engine.with_kv(KVOptions(max_size=64)).session(), with_head.session()
    for number, one in enumerate(more):
        list(one.ask(str(number), max_tokens=1))
    assert conversations_saved(cluster, capfd) == ["0", "1", QUESTION, QUESTION]
    del engine, with_head, session, other, again, more, one
    gc.collect()
    assert cluster.watch.on_lost == [], "an engine that nobody has any more is kept alive"


def test_other_hosts_cannot_be_joined_by_the_same_process(
    cluster: Cluster, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "four.json"
    file.write_text(json.dumps([{"ssh": "localhost", "ips": ["127.0.0.1"]}] * 2))
    with pytest.raises(ClusterError, match="start another process"):
        mlx_eagle.load(folder, "none", hosts=file, **OPTIONS)


def test_what_does_not_divide_is_refused_before_anything_is_started(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "three.json"
    file.write_text(json.dumps([{"ssh": "nowhere", "ips": ["192.0.2.1"]}] * 3))
    with pytest.raises(UnsupportedTargetError, match="among 3 hosts: num_attention_heads is"):
        mlx_eagle.load(folder, "none", hosts=file, **OPTIONS)


def test_the_doctor_says_who_is_there_and_how_fast(
    cluster: Cluster, folder: Path, hosts: Path
) -> None:
    said = " ".join(describe_hosts(hosts, str(folder)).split())
    assert "rank 1 127.0.0.1, MLX may use" in said
    assert "target the same files" in said
    assert "16384 bytes" in said


Ask = Callable[[Cluster, Path, str], object]


def load_stages(cluster: Cluster, folder: Path, name: str) -> object:
    return cluster.load(folder, name, "float32", parallel=PIPELINE)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target that can be dealt out, but not divided."""
    folder = tmp_path_factory.mktemp("stages") / "qwen2"
    return write_tiny(folder, "qwen2", num_hidden_layers=2, intermediate_size=97)[0]


@pytest.mark.parametrize("ask", [Cluster.compare, load_stages])
def test_other_files_on_a_host_are_named_and_nobody_is_lost(
    ask: Ask, cluster: Cluster, stages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("mlx_eagle.cluster.cluster.fingerprint", lambda folder: "of other files")
        with pytest.raises(ClusterError, match="rank 1 on 127.0.0.1: .* holds another config"):
            ask(cluster, stages, "tiny")
    cluster.compare(stages, "tiny")


def test_a_follower_that_cannot_read_its_stage_is_named_and_nobody_waits_for_it(
    cluster: Cluster, stages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def to_divide(orders: Sequence[Order]) -> bytes:
        change = {"parallel": TENSOR}
        return encode_orders(
            [one.model_copy(update=change) if isinstance(one, Load) else one for one in orders]
        )

    with monkeypatch.context() as patch:
        patch.setattr("mlx_eagle.cluster.cluster.encode_orders", to_divide)
        with pytest.raises(ClusterError, match="rank 1 on 127.0.0.1: .* cannot be divided"):
            load_stages(cluster, stages, "tiny")
    load_stages(cluster, stages, "tiny")


def command(folder: Path, *more: str) -> list[str]:
    options = ["--model", str(folder), "--head", "ngram", "--no-calibrate", "--max-tokens", "8"]
    return [sys.executable, "-m", "mlx_eagle.cli", "generate", *options, *more, QUESTION]


@pytest.fixture(scope="module")
def answer(folder: Path) -> str:
    return subprocess.run(command(folder), capture_output=True, text=True, check=True).stdout


@pytest.mark.broad
def test_the_command_line_takes_a_hosts_file(answer: str, folder: Path, hosts: Path) -> None:
    done = subprocess.run(
        command(folder, "--hosts", str(hosts)), capture_output=True, text=True, check=True
    )
    assert done.stdout == answer
    assert "2 ranks (tensor)" in done.stderr


@pytest.mark.broad
def test_ranks_above_0_of_mlx_launch_follow_and_print_nothing(
    answer: str, folder: Path, tmp_path: Path
) -> None:
    free = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ring = [[f"127.0.0.1:{one.getsockname()[1]}"] for one in free]
    for one in free:
        one.close()
    (tmp_path / "ring.json").write_text(json.dumps(ring))
    ranks = [
        subprocess.Popen(
            command(folder),
            env={**os.environ, "MLX_RANK": str(rank), "MLX_HOSTFILE": str(tmp_path / "ring.json")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (first, said), (second, silent) = (one.communicate(timeout=240) for one in ranks)
    assert [one.returncode for one in ranks] == [0, 0], said + silent
    assert first == answer
    assert (second, silent) == ("", "")
