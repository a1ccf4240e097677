"""A follower ends with rank 0, and waits for one that merely stands still."""

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from mlx_eagle.cluster import follower as follower_module
from mlx_eagle.cluster.control import SIGN_OF_LIFE, Channel
from mlx_eagle.cluster.facts import fingerprint
from mlx_eagle.cluster.follower import Follower
from mlx_eagle.cluster.messages import Files, Stop, encode_orders
from mlx_eagle.hub.packaged import TOY_PAIR
from mlx_eagle.loading import _find_parts


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which the process would have ended; what found that out stops there."""
    found: list[int] = []

    def leave(status: int) -> None:
        found.append(status)
        threading.Event().wait()

    monkeypatch.setattr(os, "_exit", leave)
    return found


@pytest.fixture
def ends(left: list[int]) -> Iterator[tuple[Channel, Channel]]:
    rank_0, follower = (Channel(end) for end in socket.socketpair())
    yield rank_0, follower
    rank_0.close()
    follower.close()
    while len(left) < 2:  # they listen, and beat
        time.sleep(0.01)


def test_a_packaged_model_is_found_by_its_name_on_another_host() -> None:
    found = _find_parts(TOY_PAIR, None, lambda *_: None, print)
    assert found.name != found.source == "demo"
    files = Files(folder="/nowhere", name=found.source, fingerprint=fingerprint(found.folder))
    assert follower_module._find(files) == TOY_PAIR.target


def test_a_follower_says_nothing_to_a_rank_0_that_is_stopped_and_goes_on_with_it(
    ends: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower_module, "BEAT", 0.01)
    monkeypatch.setattr(follower_module, "UNHEARD", 0.1)
    rank_0, theirs = ends
    said: list[float] = []

    def listen() -> None:
        while rank_0.receive() is not None:
            said.append(time.monotonic())

    serving = threading.Thread(target=Follower(theirs, 1).serve)
    for thread in (threading.Thread(target=listen, daemon=True), serving):
        thread.start()
    for _ in range(2):
        heard = time.monotonic()
        rank_0.send(SIGN_OF_LIFE)
        while not said or said[-1] < heard:
            time.sleep(0.01)
        while time.monotonic() - said[-1] < 0.3:  # silent at last
            time.sleep(0.05)
            assert time.monotonic() - heard < 20
    rank_0.send(encode_orders([Stop()]))
    serving.join(20)
    assert not serving.is_alive()
