"""The control sockets between rank 0 and its followers: a token first, then bounded messages.

A frame is its length, four bytes little-endian, and so many bytes of UTF-8 JSON (`messages.py`);
an empty one says nothing but that rank 0 is there.
Whoever connects must say the run's token first; until then nothing of what it sends is looked at.
Followers sleep in `receive` while nothing is to be done, and the death of a process shows as the
end of the stream, whatever carries the numbers (ring or JACCL).
"""

import hmac
import secrets
import socket
import struct
import sys
import threading
import time
from contextlib import suppress

from mlx_eagle.errors import ClusterError

TOKEN_BYTES = 32  # random; sent as hexadecimal digits
SIGN_OF_LIFE = b""  # of rank 0; followers have a message for it
BEAT = 1.0  # seconds between two signs of life, either way
MAX_BYTES = 8 << 20  # of a message: a chunk of a million tokens
TOKEN_SECONDS = 5.0  # in which a new connection must have said the token
# Seconds without an answer of the other machine's kernel after which a connection counts as lost,
# whether or not something was sent meanwhile; a process that is merely stopped answers there.
UNREACHED = 30
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
DARWIN_DROP_SECONDS = 0x80  # TCP_RXT_CONNDROPTIME, which Python does not name; never run
_LENGTH = struct.Struct("<I")


def new_token() -> str:
    """Return a token for one run, 64 hexadecimal digits."""
    return secrets.token_hex(TOKEN_BYTES)


class Channel:
    """One end of a connection; messages go both ways.

    Args:
        connection: connected; the channel closes it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._sending = threading.Lock()
        with suppress(OSError):  # not a TCP socket in a test
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _bound_silence(connection)

    @classmethod
    def connect(cls, address: tuple[str, int], token: str, seconds: float) -> "Channel":
        """Connect to rank 0 and say the token.

        Args:
            address: host and port.
            token: of this run.
            seconds: until it is given up.

        Raises:
            ClusterError: if rank 0 cannot be reached.
        """
        try:
            connection = socket.create_connection(address, timeout=seconds)
            connection.settimeout(None)
            connection.sendall(token.encode())
        except OSError as error:
            raise ClusterError(f"rank 0 cannot be reached at {address[0]}: {error}") from error
        return cls(connection)

    def send(self, data: bytes) -> None:
        """Send one message; from any thread.

        Raises:
            ClusterError: if it is too long.
            OSError: if the connection is lost.
        """
        if len(data) > MAX_BYTES:
            raise ClusterError(f"a message has {len(data)} bytes, {MAX_BYTES} are allowed")
        with self._sending:
            self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def receive(self, seconds: float | None = None) -> bytes | None:
        """Wait for a message and return it; None once the other end has closed, or is lost.

        Args:
            seconds: after which it counts as lost, as long as nobody sends at the same time; None
                waits for ever.

        Raises:
            ClusterError: if a message is announced that is longer than is allowed.
        """
        if seconds is None:
            return self._message()
        self._socket.settimeout(seconds)
        try:
            return self._message()
        finally:
            self._socket.settimeout(None)

    def _message(self) -> bytes | None:
        """Do what `receive` does, for as long as the socket waits."""
        header = self._read(_LENGTH.size)
        if header is None:
            return None
        (length,) = _LENGTH.unpack(header)
        if length > MAX_BYTES:
            raise ClusterError(f"a message of {length} bytes is announced, {MAX_BYTES} are allowed")
        return self._read(length)

    def close(self) -> None:
        """Close the connection; who waits in `receive` at either end is told."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self, n: int) -> bytes | None:
        """Return the next n bytes; None if the stream ends before."""
        found = bytearray()
        while len(found) < n:
            try:
                part = self._socket.recv(min(n - len(found), 1 << 16))
            except OSError:
                return None
            if not part:
                return None
            found += part
        return bytes(found)


def _bound_silence(connection: socket.socket) -> None:
    """Let a TCP connection end whose other machine does not answer any more.

    Keepalive looks after a connection on which nothing is sent. What is sent and not acknowledged
    would be sent again for a quarter of an hour, unless that is bounded as well.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREACHED)
    elif sys.platform == "darwin":
        connection.setsockopt(socket.IPPROTO_TCP, DARWIN_DROP_SECONDS, UNREACHED)


class Listener:
    """Where rank 0 waits for its followers.

    Args:
        host: the address to listen at; no other one of this machine is opened.
        token: what they must say first.

    Raises:
        ClusterError: if the address is not one of this machine.
    """

    def __init__(self, host: str, token: str) -> None:
        self._token = token.encode()
        try:
            self._socket = socket.create_server((host, 0))
        except OSError as error:
            raise ClusterError(
                f"{host} is no address of this machine ({error.strerror or error}); the first host "
                "of the hosts file must be the machine on which the command runs"
            ) from error

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def accept(self, seconds: float) -> Channel | None:
        """Return the next connection that says the token; None if none is made in time.

        It may take a while longer to say it, as the network is. Others are closed without an
        answer.
        """
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return None
            if self._knows_token(connection, TOKEN_SECONDS):
                connection.settimeout(None)
                return Channel(connection)
            connection.close()
        return None

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()

    def _knows_token(self, connection: socket.socket, seconds: float) -> bool:
        """Say whether a connection begins with the token."""
        ends, said = time.monotonic() + seconds, b""
        while len(said) < len(self._token):
            connection.settimeout(max(ends - time.monotonic(), 0.001))
            try:
                part = connection.recv(len(self._token) - len(said))
            except OSError:
                return False
            if not part:
                return False
            said += part
        return hmac.compare_digest(said, self._token)
