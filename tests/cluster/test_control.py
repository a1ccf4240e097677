"""The control sockets: the token first, whole messages, bounded, and an end that is noticed."""

import ctypes
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import broad
from mlx_eagle.cluster import control
from mlx_eagle.cluster.control import MAX_BYTES, Channel, Listener, new_token
from mlx_eagle.errors import ClusterError

SECONDS = 5.0
SO_ATTACH_FILTER = 26  # of Linux; Python does not name it


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    left, right = (Channel(end) for end in socket.socketpair())
    yield left, right
    left.close()
    right.close()


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_messages_arrive_whole_and_in_order(messages: list[bytes]) -> None:
    left, right = (Channel(end) for end in socket.socketpair())
    with closing(left), closing(right):
        for message in messages:
            left.send(message)
        assert [right.receive() for _ in messages] == messages


def test_a_message_larger_than_the_buffers_arrives(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    data = bytes(range(256)) * 4096
    sending = threading.Thread(target=left.send, args=(data,))
    sending.start()
    assert right.receive() == data
    sending.join()


def test_the_end_of_the_other_process_is_told(ends: tuple[Channel, Channel]) -> None:
    left, right = ends
    left.close()
    assert right.receive() is None


def test_half_a_message_is_none() -> None:
    left, right = socket.socketpair()
    with closing(Channel(right)) as channel:
        left.sendall(struct.pack("<I", 10) + b"12345")
        left.close()
        assert channel.receive() is None


def test_a_length_beyond_the_bound_is_refused_unread() -> None:
    left, right = socket.socketpair()
    with closing(left), closing(Channel(right)) as channel:
        left.sendall(struct.pack("<I", MAX_BYTES + 1))
        with pytest.raises(ClusterError, match="are allowed"):
            channel.receive()


def test_too_long_a_message_is_not_sent(ends: tuple[Channel, Channel]) -> None:
    with pytest.raises(ClusterError, match="are allowed"):
        ends[0].send(bytes(MAX_BYTES + 1))


def test_who_knows_the_token_is_let_in() -> None:
    token = new_token()
    with closing(Listener("127.0.0.1", token)) as listener:
        follower = Channel.connect(listener.address, token, SECONDS)
        leader = listener.accept(SECONDS)
        assert leader is not None
        follower.send(b"hello")
        assert leader.receive() == b"hello"
        follower.close()
        leader.close()


@pytest.mark.parametrize("said", ["0" * 64, "", "GET / HTTP/1.1"])
def test_who_does_not_know_the_token_is_shut_out_and_the_next_one_let_in(said: str) -> None:
    token = new_token()
    with closing(Listener("127.0.0.1", token)) as listener:
        stranger = socket.create_connection(listener.address)
        stranger.sendall(said.encode())
        stranger.shutdown(socket.SHUT_WR)
        follower = Channel.connect(listener.address, token, SECONDS)
        leader = listener.accept(SECONDS)
        assert leader is not None
        follower.send(b"hello")
        assert leader.receive() == b"hello"
        assert stranger.recv(1) == b""
        for end in (stranger, follower, leader):
            end.close()


@pytest.mark.skipif(sys.platform != "linux", reason="drops packets as Linux does")
@pytest.mark.parametrize("sends", [True, broad(False)])
def test_a_machine_that_vanishes_ends_the_connection_whatever_was_sent(
    sends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "UNREACHED", 1)
    monkeypatch.setattr(control, "KEEPALIVE", {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1})
    token = new_token()
    with closing(Listener("127.0.0.1", token)) as listener:
        follower = Channel.connect(listener.address, token, SECONDS)
        leader = listener.accept(SECONDS)
    assert leader is not None
    with closing(follower), closing(leader):
        follower.send(b"hello")
        assert leader.receive() == b"hello"
        vanish(leader)
        if sends:
            follower.send(b"are you there?")
        began = time.monotonic()
        assert follower.receive() is None
        assert time.monotonic() - began < 15


def vanish(end: Channel) -> None:
    """Let nothing that is sent to this end arrive: not even its kernel answers from now on."""
    drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(drop_all))
    end._socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    end._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0)  # nor asks it anything


def test_nobody_comes_in_time() -> None:
    with closing(Listener("127.0.0.1", new_token())) as listener:
        assert listener.accept(0.05) is None


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ClusterError, match="no address of this machine"):
        Listener("192.0.2.1", new_token())  # RFC 5737: nobody's


def test_rank_0_that_is_not_there_is_named() -> None:
    with closing(Listener("127.0.0.1", new_token())) as listener:
        address = listener.address
    with pytest.raises(ClusterError, match="rank 0 cannot be reached"):
        Channel.connect(address, new_token(), SECONDS)
