"""Followers that connect: they may be slow, but not for ever; and what `mlx.launch` has started."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlx_eagle
from mlx_eagle.cli.main import run
from mlx_eagle.cluster import connecting, launched
from mlx_eagle.cluster.connecting import accept_all
from mlx_eagle.cluster.control import Channel, Listener, new_token
from mlx_eagle.cluster.facts import versions
from mlx_eagle.cluster.launched import _own_address, lead_launched
from mlx_eagle.cluster.messages import Hello, encode_report
from mlx_eagle.cluster.rank import RANK
from mlx_eagle.cluster.ring import join_launched
from mlx_eagle.cluster.watch import Peer
from mlx_eagle.errors import ClusterError, HubError
from mlx_eagle.load_options import LAUNCHED

NAMES = {1: "studio-2"}


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener("127.0.0.1", new_token())
    yield made
    made.close()


def late(missing: Mapping[int, str], is_late: bool) -> None:
    if is_late:
        raise ClusterError(f"{missing[1]} is late")


def accepted(listener: Listener, seconds: float = 20.0) -> dict[int, Peer]:
    return accept_all(listener, NAMES, seconds, late)


def test_a_token_that_takes_a_while_on_the_network_is_waited_for(listener: Listener) -> None:
    connection = socket.create_connection(listener.address)
    hello = encode_report(Hello(rank=1, versions=versions(), memory=1))

    def say_slowly() -> None:
        for half in (listener._token[:10], listener._token[10:]):
            time.sleep(0.15)
            connection.sendall(half)
        Channel(connection).send(hello)

    saying = threading.Thread(target=say_slowly)
    saying.start()
    peer = accepted(listener)[1]
    saying.join()
    peer.channel.close()
    connection.close()


def test_a_follower_that_connects_and_says_nothing_is_late(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "HELLO_SECONDS", 0.2)
    channel = Channel.connect(listener.address, listener._token.decode(), 5)
    with pytest.raises(ClusterError, match="studio-2 is late"):
        accepted(listener, 0.1)
    assert channel.receive() is None, "it was shut out"
    channel.close()


class Joined:
    """A cluster of which nothing is needed but that it is there."""

    is_usable = True


def test_rank_0_of_mlx_launch_joins_before_it_fetches_anything_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []

    def fetch(*_: Any) -> None:
        happened.append("fetched")
        raise HubError("there is no such model")

    monkeypatch.setattr(launched, "_lead", lambda _: happened.append("joined") or Joined())
    monkeypatch.setattr("mlx_eagle.cluster.launch._JOINED", [])
    monkeypatch.setattr("mlx_eagle.loading.find", fetch)
    for _ in range(2):
        with pytest.raises(HubError):
            mlx_eagle.load(tmp_path, hosts=LAUNCHED)
    assert happened == ["joined", "fetched", "fetched"]


def test_a_command_under_mlx_launch_joins_before_its_arguments_are_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    happened: list[str] = []
    monkeypatch.setenv(RANK, "0")
    monkeypatch.setattr(launched, "_lead", lambda _: happened.append("joined") or Joined())
    monkeypatch.setattr("mlx_eagle.cluster.launch._JOINED", [])
    assert run(["serve", "--no-such-option"]) == 2
    assert happened == ["joined"]
    assert "--no-such-option" in capsys.readouterr().err


def test_the_other_ranks_of_mlx_launch_load_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RANK, "2")
    with pytest.raises(ClusterError, match="process of rank 2 of mlx.launch, and rank 0 alone"):
        lead_launched()


def test_a_rank_that_is_lost_when_all_have_joined_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lose(*_: Any, **__: Any) -> None:
        raise RuntimeError("[ring] connection to a peer was lost")

    monkeypatch.setenv(RANK, "0")
    monkeypatch.setattr(mx.distributed, "init", lambda **_: None)
    monkeypatch.setattr(mx.distributed, "all_sum", lose)
    with pytest.raises(ClusterError, match="rank 0 cannot join the others: .* was lost; start all"):
        join_launched()


def test_rank_0_of_mlx_launch_listens_where_the_others_join_it(tmp_path: Path) -> None:
    file = tmp_path / "ring.json"
    file.write_text('[["192.168.7.1:5000"], ["192.168.7.2:5000"]]')
    assert _own_address({"MLX_HOSTFILE": str(file)}) == "192.168.7.1"
    assert _own_address({"MLX_JACCL_COORDINATOR": "10.0.0.1:32323"}) == "10.0.0.1"
    assert _own_address({}) == "127.0.0.1"
