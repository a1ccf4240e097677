"""Hosts files: both forms of mlx.launch, and what is wrong with others, by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.cluster.hosts import Host, Hosts, loopback, read_hosts
from mlx_eagle.errors import ClusterError, EagleError
from mlx_eagle.load_options import LoadOptions

TWO = [
    {"ssh": "studio-1", "ips": ["192.168.7.1"], "rdma": [None, "rdma_en2"]},
    {"ssh": "studio-2", "ips": ["192.168.7.2", "10.0.0.2"]},
]
FOUND = (
    Host("studio-1", ("192.168.7.1",), (None, "rdma_en2")),
    Host("studio-2", ("192.168.7.2", "10.0.0.2")),
)
CABLED = [TWO[0], TWO[1] | {"rdma": ["rdma_en2", None]}]


def written(folder: Path, said: Any) -> Path:
    file = folder / "hosts.json"
    file.write_text(said if isinstance(said, str) else json.dumps(said))
    return file


def test_both_forms_are_read(tmp_path: Path) -> None:
    assert read_hosts(written(tmp_path, TWO)) == Hosts(FOUND)
    whole = {"backend": "ring", "envs": ["MLX_METAL_FAST_SYNCH=0"], "hosts": TWO}
    assert read_hosts(written(tmp_path, whole)) == Hosts(FOUND, ("MLX_METAL_FAST_SYNCH=0",))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # it leaves the file open
def test_mlx_reads_the_same_file_alike(tmp_path: Path) -> None:
    """The oracle is MLX's own reader."""
    common = pytest.importorskip("mlx._distributed_utils.common")
    theirs = common.Hostfile.from_file(written(tmp_path, {"hosts": TWO}))
    ours = read_hosts(tmp_path / "hosts.json")
    facts = [(h.ssh_hostname, tuple(h.ips), tuple(h.rdma)) for h in theirs.hosts]
    assert facts == list(map(tuple, ours.hosts))


def test_this_machine_is_told_by_its_addresses() -> None:
    assert all(host.is_local for host in loopback(3).hosts)
    assert not any(host.is_local for host in FOUND)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("{", "no hosts file"),
        ([], "2 to 64 hosts"),
        (TWO[:1], "2 to 64 hosts"),
        ({"hosts": 3}, "2 to 64 hosts"),
        ([TWO[0], {"ips": ["10.0.0.1"]}], 'host 1 has no "ssh"'),
        ([TWO[0], {"ssh": "-oProxyCommand=x", "ips": ["10.0.0.1"]}], 'host 1 has no "ssh"'),
        ([TWO[0], {"ssh": "a"}], 'host 1 has no "ips"'),
        ([TWO[0], {"ssh": "a", "ips": ["studio"]}], 'host 1 has no "ips"'),
        ({"hosts": TWO, "backend": "jaccl"}, 'host 1 must have an "rdma" of 2 devices'),
        ({"hosts": [CABLED[1]] * 2, "backend": "jaccl"}, "host 0 must .* null for itself"),
        ({"hosts": [TWO[0] | {"rdma": [None] * 2}] * 2, "backend": "jaccl"}, "leads to host 1"),
        ([TWO[0], TWO[1] | {"rdma": [1, None]}], 'host 1 has an "rdma" that is no list'),
        ({"hosts": TWO, "backend": "mpi"}, "ring, jaccl and jaccl-ring are known"),
        ({"hosts": TWO, "parallel": "both"}, '"parallel" must be tensor or pipeline'),
        ({"hosts": TWO, "envs": ["X"]}, '"envs"'),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(said: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=reason):
        read_hosts(written(tmp_path, said))


def test_how_a_target_is_divided_may_stand_in_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, {"hosts": TWO, "parallel": "pipeline"})
    assert read_hosts(file) == Hosts(FOUND, parallel="pipeline")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="is no hosts file"):
        read_hosts(tmp_path / "none.json")


@pytest.mark.parametrize(
    "options",
    [
        {"parallel": "pipeline", "kv_bits": 8},
        {"adapter_path": "adapter"},
        {"kernels": "force"},
        {"cache_disk": 1 << 30},
    ],
    ids=str,
)
def test_what_is_not_done_with_hosts_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(EagleError, match="with hosts, where it is not supported yet"):
        LoadOptions(hosts="hosts.json", **options)


def test_costs_of_another_wiring_are_others() -> None:
    """Other addresses, another backend or other devices; not other variables."""
    known = Hosts((Host("a", ("10.0.0.1",)), Host("b", ("10.0.0.2",))))
    devices = (Host("a", ("10.0.0.1",), (None, "en2")), Host("b", ("10.0.0.2",), ("en3", None)))
    others = [
        known._replace(hosts=(known.hosts[0], Host("b", ("10.0.0.3",)))),
        known._replace(backend="jaccl"),
        known._replace(backend="jaccl", hosts=devices),
    ]
    assert len({hosts.wiring for hosts in (known, *others)}) == 4
    assert known._replace(envs=("A=b",)).wiring == known.wiring
    assert others[2].wiring == "jaccl 10.0.0.1, 10.0.0.2, en2, en3"
