"""What rank 0 finds out about its followers, and when it ends because MLX cannot be left."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from mlx_eagle.cluster import watch as watch_module
from mlx_eagle.cluster.control import Channel
from mlx_eagle.cluster.messages import Beat, Done, Fault, Hello, Ready, Report, encode_report
from mlx_eagle.cluster.watch import Patience, Peer, Watch
from mlx_eagle.errors import ClusterError, UnsupportedTargetError

LONG = Patience(silence=60, least=60, first=60)


class Side:
    """A follower's end of the connection, and rank 0's view of it."""

    def __init__(self) -> None:
        theirs, ours = socket.socketpair()
        self.channel = Channel(theirs)
        self.peer = Peer("studio-2", 1, Channel(ours), memory=1 << 30)

    def say(self, report: Report) -> None:
        self.channel.send(encode_report(report))


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    yield made
    made.channel.close()
    made.peer.channel.close()


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which the process would have ended; the watching thread stops there."""
    found: list[int] = []

    def stop(status: int) -> None:
        found.append(status)
        threading.Event().wait()

    monkeypatch.setattr(os, "_exit", stop)
    monkeypatch.setattr(watch_module, "GRACE", 0.2)
    return found


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it never came"
        time.sleep(0.01)


def watching(side: Side, patience: Patience = LONG) -> Watch:
    return Watch([side.peer], patience)


def test_a_follower_that_ends_is_lost_by_name(side: Side) -> None:
    watch = watching(side)
    watch.check()
    side.channel.close()
    until(lambda: watch.lost)
    with pytest.raises(ClusterError, match="rank 1 on studio-2 has ended"):
        watch.check()
    watch.end()


def test_who_was_lost_first_is_named_and_not_who_ends_because_of_it(side: Side) -> None:
    theirs, ours = socket.socketpair()
    third = Peer("studio-3", 2, Channel(ours), memory=1 << 30)
    watch = Watch([side.peer, third], LONG)
    theirs.close()
    until(lambda: third.lost)
    side.say(Fault(reason="[ring] connection to a peer was lost"))
    until(lambda: side.peer.lost)
    assert watch.lost.startswith("rank 2 on studio-3 has ended")
    watch.end()
    ours.close()


def test_a_follower_says_why_it_ends(side: Side) -> None:
    side.say(Fault(reason="no model is loaded"))
    side.channel.close()
    until(lambda: side.peer.lost)
    assert side.peer.lost == "rank 1 on studio-2 ends: no model is loaded"


def test_a_follower_with_other_rows_is_lost(side: Side) -> None:
    for number, rows in ((6, 39), (7, 40), (8, 41)):  # rank 0 may be ahead
        side.peer.expect(number, rows)
    side.say(Done(number=6, rows=39))
    side.say(Ready())
    assert side.peer.answer(Ready) == Ready()
    assert not side.peer.lost
    side.say(Done(number=7, rows=41))
    until(lambda: side.peer.lost)
    assert "holds 41 rows after a pass, rank 0 40" in side.peer.lost


def test_a_follower_that_ends_a_pass_which_nobody_asked_for_is_lost(side: Side) -> None:
    side.say(Done(number=7, rows=40))
    until(lambda: side.peer.lost)
    assert "nobody asked for" in side.peer.lost


def test_noise_is_no_follower(side: Side) -> None:
    side.channel.send(b"GET / HTTP/1.1")
    until(lambda: side.peer.lost)
    assert "is no follower of this version" in side.peer.lost


def test_an_answer_of_another_kind_is_not_taken(side: Side) -> None:
    side.say(Beat())
    side.say(Hello(rank=1, versions={}, memory=0))
    with pytest.raises(ClusterError, match="said hello, which was not asked for"):
        side.peer.answer(Ready)


def test_an_answer_to_an_order_that_nobody_waits_for_is_passed_over(side: Side) -> None:
    side.say(Ready(number=3, fault="of another order"))
    side.say(Ready(number=4, weights=7))
    assert side.peer.answer(Ready, 4).weights == 7
    side.say(Ready(number=6))
    with pytest.raises(ClusterError, match="said ready, which was not asked for"):
        side.peer.answer(Ready, 5)


def test_what_was_asked_before_is_waited_for_whatever_the_answer(side: Side) -> None:
    side.say(Ready(number=2))
    threading.Timer(0.2, side.say, [Ready(number=3, fault="too late")]).start()
    side.peer.settle(3)
    side.peer.settle(3)  # nothing more comes
    side.say(Ready(number=4))
    assert side.peer.answer(Ready, 4)
    side.channel.close()
    with pytest.raises(ClusterError, match="has ended"):
        side.peer.settle(5)


def test_an_answer_that_never_comes_is_given_up_when_the_follower_ends(side: Side) -> None:
    threading.Timer(0.1, side.channel.close).start()
    with pytest.raises(ClusterError, match="has ended"):
        side.peer.answer(Ready)


def test_an_answer_that_never_comes_is_given_up_in_time(side: Side) -> None:
    side.say(Beat())
    with pytest.raises(ClusterError, match="rank 1 on studio-2 stands still .* no answer"):
        side.peer.answer(Ready, seconds=0.1)


def test_who_is_waited_for_is_said_now_and_then(
    side: Side, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch_module, "REMIND", 0.05)
    monkeypatch.setattr(watch_module, "PAUSE", 0.02)
    threading.Timer(0.3, side.say, [Ready(number=1)]).start()
    side.peer.settle(1)
    assert capsys.readouterr().err.startswith("still waiting for rank 1 on studio-2, for 0 s\n")
    assert side.peer.answer(Ready, 1)
    threading.Timer(0.3, side.say, [Ready(number=2)]).start()
    side.peer.answer(Ready, 2)
    assert "still waiting for rank 1 on studio-2" in capsys.readouterr().err


def test_silence_is_noticed_and_a_beat_is_none(side: Side) -> None:
    watch = watching(side, LONG._replace(silence=0.6))
    for _ in range(8):
        side.say(Beat())
        time.sleep(0.1)
    assert not watch.lost
    until(lambda: "no sign of life" in watch.lost)
    watch.end()


def test_what_mlx_raises_for_a_lost_rank_is_said_in_words(side: Side) -> None:
    watch = watching(side)
    side.channel.close()
    with pytest.raises(ClusterError, match="rank 1 on studio-2 has ended"), watch.waiting(1):
        raise RuntimeError("[ring] connection to a peer was lost")
    watch.end()


@pytest.mark.parametrize("n_rows", [0, 1])
def test_after_what_mlx_raises_here_alone_nothing_is_computed(
    n_rows: int, side: Side, exits: list[int]
) -> None:
    watch = watching(side)
    said = "not run to its end here .*out of memory"
    with pytest.raises(ClusterError, match=said), watch.waiting(n_rows):
        raise RuntimeError("[malloc] out of memory")
    with pytest.raises(ClusterError, match=said):
        watch.check()
    watch.end()


def test_a_target_that_all_ranks_refuse_alike_leaves_them_in_step(side: Side) -> None:
    watch = watching(side)
    with pytest.raises(UnsupportedTargetError), watch.waiting():
        raise UnsupportedTargetError("no trees, on all ranks")
    watch.check()
    with pytest.raises(UnsupportedTargetError), watch.waiting(1):
        raise UnsupportedTargetError("no tap, on rank 0")
    with pytest.raises(ClusterError, match="no tap, on rank 0"):
        watch.check()
    watch.end()


def test_a_wait_that_cannot_be_left_ends_the_process(
    side: Side, exits: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    watch, told = watching(side), list[str]()
    watch.on_lost += [lambda reason: 1 / 0, told.append]
    with watch.waiting(1):
        side.channel.close()
        until(lambda: exits)
    assert exits == [1]
    assert "rank 1 on studio-2 has ended" in told[0]
    assert "error: rank 1 on studio-2 has ended" in capfd.readouterr().err


def test_a_pass_that_never_ends_ends_the_process(side: Side, exits: list[int]) -> None:
    watch = watching(side, LONG._replace(first=0.3))
    with watch.waiting(4):
        until(lambda: exits)
    assert exits == [1]


def test_nobody_is_hurried_while_rank_0_does_something_else(side: Side, exits: list[int]) -> None:
    watch = watching(side, LONG._replace(first=0.2, least=0.2))
    with watch.waiting(4):
        pass
    time.sleep(0.6)
    assert exits == []
    watch.end()


@pytest.mark.parametrize("n_rows", [0, 1])
def test_after_a_pass_that_was_not_run_to_its_end_nothing_is_computed(
    n_rows: int, side: Side
) -> None:
    watch = watching(side)
    with pytest.raises(KeyboardInterrupt), watch.waiting(n_rows):
        raise KeyboardInterrupt
    with pytest.raises(ClusterError, match="not run to its end here"):
        watch.check()
    watch.end()


def test_a_large_pass_is_given_as_long_as_large_ones_take(side: Side, exits: list[int]) -> None:
    """Not as long as so many passes of one row."""
    watch = watching(side, LONG._replace(least=0.2))
    for n_rows in (1, 1000):
        with watch.waiting(n_rows):
            time.sleep(0.02)
    with watch.waiting(1000):
        until(lambda: exits, 10.0)
    assert exits == [1]


def test_another_target_is_given_time_whatever_the_passes_of_the_first_took(
    side: Side, exits: list[int]
) -> None:
    watch = watching(side, LONG._replace(least=0.2))
    with watch.waiting(1, 0):
        pass
    with watch.waiting(1, 1):
        time.sleep(1.0)
    assert exits == []
    watch.end()
