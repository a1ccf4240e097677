"""The interpreter of state-dict pickles: it finds dense tensors, and nothing makes it act.

Programs are assembled here, instruction by instruction, so that hostile ones can be written too.
"""

import contextlib
import itertools
import operator
import os
import pickle
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.convert.pickle_reader import MAX_OPCODES, Storage, View, read_state_dict
from mlx_eagle.errors import CheckpointError

HOOKS = b"ccollections\nOrderedDict\n)R"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def number(value: int) -> bytes:
    data = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + data


def tuple_of(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def storage(key: str, numel: int, kind: str = "FloatStorage") -> bytes:
    name = f"ctorch\n{kind}\n".encode()
    return tuple_of(text("storage"), name, text(key), text("cpu"), number(numel)) + b"Q"


def tensor(block: bytes, shape: Any, strides: Any, offset: int = 0, maker: str = "") -> bytes:
    sizes, steps = (tuple_of(*map(number, values)) for values in (shape, strides))
    maker = maker or "torch._utils\n_rebuild_tensor_v2"
    arguments = tuple_of(block, number(offset), sizes, steps, b"\x89", HOOKS)
    return b"c" + maker.encode() + b"\n" + arguments + b"R"


def state_dict(**tensors: bytes) -> bytes:
    items = b"".join(text(name) + value for name, value in tensors.items())
    return b"\x80\x02}(" + items + b"u."


@contextlib.contextmanager
def cheap() -> Iterator[None]:
    """Fail if the block works for two seconds or makes the process 100 MB larger."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    yield
    assert time.process_time() - start < 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * unit < 100_000_000


def test_state_dict_becomes_views() -> None:
    program = state_dict(
        weight=tensor(storage("0", 12), (3, 4), (4, 1)),
        ids=tensor(storage("1", 3, "LongStorage"), (2,), (1,), offset=1),
    )
    assert read_state_dict(program) == {
        "weight": View(Storage("0", "F32", 12), 0, (3, 4), (4, 1)),
        "ids": View(Storage("1", "I64", 3), 1, (2,), (1,)),
    }


@given(data=st.data())
def test_a_view_is_accepted_exactly_if_it_lies_in_its_storage(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    strides = data.draw(st.lists(st.integers(0, 6), min_size=len(shape), max_size=len(shape)))
    offset = data.draw(st.integers(0, 5))
    places = itertools.product(*map(range, shape))
    elements = [offset + sum(map(operator.mul, place, strides)) for place in places]
    fits = len(elements) <= 60 and max(elements, default=0) < 60
    program = state_dict(x=tensor(storage("0", 60), shape, strides, offset))
    if fits:
        assert read_state_dict(program)["x"][1:] == (offset, tuple(shape), tuple(strides))
    else:
        with pytest.raises(CheckpointError, match="does not lie in its storage"):
            read_state_dict(program)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_state_dict_alone_in_a_dict_is_found(key: str) -> None:
    block = storage("0", 4)
    plain = state_dict(x=tensor(block, (4,), (1,)))
    inner = plain.removeprefix(b"\x80\x02").removesuffix(b".")
    assert read_state_dict(state_dict(**{key: inner})) == read_state_dict(plain)
    assert read_state_dict(state_dict(**{key: tensor(block, (4,), (1,))})) == {
        key: View(Storage("0", "F32", 4), 0, (4,), (1,))
    }


class Attack:
    """Pickles as a call of os.system."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_reduce_attack_executes_nothing(tmp_path: Path) -> None:
    sentinel = tmp_path / "executed"
    for protocol in range(6):
        program = pickle.dumps({"x": Attack(f"touch {sentinel}")}, protocol=protocol)
        with cheap(), pytest.raises(CheckpointError):
            read_state_dict(program)
    assert not sentinel.exists()
    pickle.loads(program)  # the attack works on those who unpickle
    assert sentinel.exists()


def floats(numel: int = 4) -> bytes:
    return storage("0", numel)


WRAPPED = b"}" + text("state_dict") + b"}s"
REFUSED_PROGRAMS = {
    "name of __main__": (b"\x80\x02c__main__\nEvil\n)R.", "'__main__.Evil'"),
    "builtin eval": (b"\x80\x02cbuiltins\neval\n" + tuple_of(text("1")) + b"R.", "builtins.eval"),
    "os.system": (b"\x80\x02cos\nsystem\n" + tuple_of(text("id")) + b"R.", "'os.system'"),
    "torch.load": (b"\x80\x02ctorch\nload\n" + tuple_of(text("x")) + b"R.", "'torch.load'"),
    "getattr chain": (
        b"\x80\x02cbuiltins\ngetattr\n" + tuple_of(b"cos\n_exit\n", text("__call__")) + b"R.",
        "'builtins.getattr'",
    ),
    "name in a known module": (b"\x80\x02ccollections\nOrderedDict.update\n.", "only dense"),
    "name on the stack": (b"\x80\x04" + text("os") + text("system") + b"\x93.", "os.system"),
    "name that is no text": (b"\x80\x04K\x01K\x02\x93.", "only dense tensors"),
    "sparse tensor": (
        state_dict(x=tensor(floats(), (4,), (1,), maker="torch._utils\n_rebuild_sparse_tensor")),
        "_rebuild_sparse_tensor",
    ),
    "double precision": (
        state_dict(x=tensor(storage("0", 2, "DoubleStorage"), (2,), (1,))),
        "DoubleStorage",
    ),
    "name with an escape": (b"\x80\x02cos\\x2e\nsystem\\q\n.", "only dense tensors"),
    "name without an end": (b"\x80\x02cos\nsystem", "only dense tensors"),
    "instance": (b"\x80\x02(ios\nsystem\n.", "INST"),
    "object": (b"\x80\x02(cos\nsystem\no.", "os.system"),
    "new object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "extension registry": (b"\x80\x02\x82\x01.", "EXT1"),
    "negative offset": (state_dict(x=tensor(floats(), (2,), (1,), offset=-1)), "unknown way"),
    "negative stride": (state_dict(x=tensor(floats(), (2,), (-1,))), "unknown way"),
    "negative size": (state_dict(x=tensor(floats(), (-2,), (1,))), "unknown way"),
    "offset beyond": (state_dict(x=tensor(floats(), (2,), (1,), offset=3)), "does not lie"),
    "stride beyond": (state_dict(x=tensor(floats(), (2, 2), (3, 1))), "does not lie"),
    "gigabytes from one element": (
        state_dict(x=tensor(floats(), (1 << 30,), (0,))),
        "does not lie",
    ),
    "more elements than 64 bits count": (
        state_dict(x=tensor(floats(), ((1 << 31) - 1,) * 8, (0,) * 8)),
        "does not lie",
    ),
    "axis beyond 32 bits": (state_dict(x=tensor(floats(), (0, 1 << 31), (1, 1))), "unknown way"),
    "too many axes": (state_dict(x=tensor(floats(), (1,) * 9, (1,) * 9)), "unknown way"),
    "shape that is a bool": (
        state_dict(x=tensor(floats(), (), ())).replace(b"(t(t", b"(\x88t(\x88t"),
        "unknown way",
    ),
    "storage that is no tuple": (b"\x80\x02" + text("0") + b"Q.", "storage in an unknown way"),
    "storage of a number": (
        b"\x80\x02" + tuple_of(text("storage"), b"K\x01", text("0"), text("cpu"), b"K\x01") + b"Q.",
        "storage in an unknown way",
    ),
    "tensor of no storage": (state_dict(x=tensor(b"N", (1,), (1,))), "unknown way"),
    "call of a dict": (b"\x80\x02})R.", "not a function"),
    "call of a storage type": (b"\x80\x02ctorch\nHalfStorage\n)R.", "not how tensors are made"),
    "attributes of a tensor": (
        b"\x80\x02" + tensor(floats(), (4,), (1,)) + b"}b.",
        "sets attributes",
    ),
    "no tensor": (state_dict(epoch=b"K\x07"), "'epoch' is a int"),
    "nested state dict": (state_dict(ema=b"}"), "'ema' is a dict"),
    "state dict nested twice": (state_dict(model=WRAPPED), "'state_dict' is a dict"),
    "state dict beside others": (state_dict(epoch=b"K\x07", model=b"}"), "'epoch' is a int"),
    "not a dict": (b"\x80\x02K\x07.", "holds a int"),
    "key that is a number": (b"\x80\x02}K\x01K\x02s.", "not text"),
    "key that is a deep tuple": (b"\x80\x02})" + b"\x85" * 100_000 + b"K\x02s.", "not text"),
    "key twice": (b"\x80\x02}(" + (text("x") + b"K\x01") * 2 + b"u.", "sets 'x' twice"),
    "name with an escape sequence": (
        state_dict(**{"\x1b[2J": tensor(floats(), (4,), (1,))}),
        r"'\\x1b\[2J' is not a name",
    ),
    "items of a tuple": (b"\x80\x02)K\x01K\x02s.", "not a dict"),
    "key without a value": (b"\x80\x02}(" + text("x") + b"u.", "not a dict"),
    "no values": (b"\x80\x02.", "more values than"),
    "tuple of nothing": (b"\x80\x02\x85.", "more values than"),
    "no mark": (b"\x80\x02t.", "mark"),
    "no memo": (b"\x80\x02h\x07.", "recalls"),
    "no end": (b"\x80\x02}", "ends early"),
    "nothing": (b"", "ends early"),
    "cut number": (b"\x80\x02J\x01", "not enough|expected"),
    "text longer than the file": (b"\x80\x02X\xff\xff\xff\x7fx.", "expected 2147483647"),
    "text that is not UTF-8": (b"\x80\x02X\x01\0\0\0\xff.", "utf-8"),
    "marks without end": (b"\x80\x02" + b"(" * 400_000 + b".", "nested too deeply"),
    "instructions without end": (b"\x80\x02" + b"N" * (2 << 20) + b".", "more than 500000"),
}


@pytest.mark.parametrize("name", REFUSED_PROGRAMS)
def test_hostile_program_is_refused(name: str) -> None:
    program, message = REFUSED_PROGRAMS[name]
    with cheap(), pytest.raises(CheckpointError, match=message):
        read_state_dict(program)


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(b"\x80\x02}r\xff\xff\xff\xff.", id="memo index of four billion"),
        pytest.param(b"\x80\x02)" + b"\x85" * 400_000 + b"}.", id="tuples nested 400,000 deep"),
        pytest.param(b"\x80\x02})" + b"\x86" * 0 + b"(" + b"h\0" * 0 + b"t}.", id="empty tuples"),
        pytest.param(
            b"\x80\x02Nq\0" + b"(h\0h\0h\0h\0tq\0" * 30_000 + b"}.", id="a billion laughs"
        ),
        pytest.param(b"\x80\x02\x8a\xff" + b"\x7f" * 255 + b"}.", id="integer of 255 bytes"),
    ],
)
def test_bombs_that_describe_nothing_cost_nothing(program: bytes) -> None:
    with cheap():
        assert read_state_dict(program) == {}


def test_limit_is_where_real_checkpoints_stay_below() -> None:
    assert MAX_OPCODES >= 5_000 * 60  # tensors per file, instructions per tensor
