"""Processes on this machine that train together, started without `mlx.launch`.

That one keeps a core busy with waiting (MLX 0.32.4), which is missed where CPUs train.
"""

import json
import socket
import tempfile


class Ring:
    """Loopback addresses of n processes, in a file that MLX's ring reads; it goes with this object.

    Attributes:
        environments: what each of the processes needs in its environment; nothing for one alone.
    """

    def __init__(self, n: int) -> None:
        self._hosts = tempfile.NamedTemporaryFile("w", suffix=".json")  # noqa: SIM115
        json.dump(free_addresses(n), self._hosts)
        self._hosts.flush()
        shared = {"MLX_HOSTFILE": self._hosts.name}
        ranks = [shared | {"MLX_RANK": str(rank)} for rank in range(n)]
        self.environments = ranks if n > 1 else [{}]


def free_addresses(n: int) -> list[list[str]]:
    """Return loopback addresses for n processes, as MLX's ring reads them."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return [[f"127.0.0.1:{port}"] for port in ports]
