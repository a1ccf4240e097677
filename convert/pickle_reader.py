"""What the pickle of a state dict describes, found out without executing it.

A pickle is a program for a small stack machine that can call anything. This module runs only the
instructions that `torch.save` needs for a dict of dense tensors, on inert values, and refuses all
others. No name in the program is ever imported or called: the few that are known stand for a
dict, a storage type or a tensor. Views are checked to lie within their storage.

It is not the zip side (`torch_files.py`): whether the bytes of a storage exist is not known here.
"""

import io
import math
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote
from mlx_eagle.files.safetensors import MAX_AXES, MAX_SIZE

MAX_OPCODES = 500_000  # under a second of interpretation; a tensor takes some fifty
MAX_MARKS = 64  # torch.save nests four
WRAPPERS = ("state_dict", "model")

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}

STORAGE_DTYPES = {
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.FloatStorage": "F32",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.BoolStorage": "BOOL",
}


class Storage(NamedTuple):
    """A block of `numel` elements in the archive entry `data/<key>`; `dtype` such as `BF16`."""

    key: str
    dtype: str
    numel: int


class View(NamedTuple):
    """A dense tensor: a strided window on a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Global(NamedTuple):
    """A dotted name in the program: compared with the few that are known, never imported."""

    name: str


def read_state_dict(program: bytes) -> dict[str, View]:
    """Return the tensors, by name, that a pickled state dict describes.

    Raises:
        CheckpointError: if the program is anything but the pickle of a dict of dense tensors.
    """
    return _state_dict(_Interpreter().run(program))


class _Interpreter:
    """Runs the pickle instructions that describe dense tensors; nothing it does has an effect.

    Values are int, bool, None, str, tuple, dict and this module's three named tuples. They are
    never compared, hashed, printed or walked as a whole, so that no depth of nesting matters.
    """

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}
        push = self._stack_push
        self._steps: dict[str, Callable[[Any], None]] = {
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), push),
            **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), push),
            **dict.fromkeys(("BINPUT", "LONG_BINPUT"), self._remember),
            **dict.fromkeys(("BINGET", "LONG_BINGET"), self._recall),
            "MEMOIZE": lambda _: self._remember(len(self._memo)),
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_TUPLE": lambda _: push(()),
            "TUPLE1": lambda _: push(tuple(self._pop(1))),
            "TUPLE2": lambda _: push(tuple(self._pop(2))),
            "TUPLE3": lambda _: push(tuple(self._pop(3))),
            "TUPLE": lambda _: push(tuple(self._pop_to_mark())),
            "MARK": self._mark,
            "GLOBAL": lambda names: push(_global(*names)),
            "STACK_GLOBAL": lambda _: push(_global(*self._pop(2))),
            "BINPERSID": lambda _: push(_storage(*self._pop(1))),
            "REDUCE": lambda _: push(_call(*self._pop(2))),
            "BUILD": self._build,
            "SETITEM": lambda _: self._set_items(self._pop(2)),
            "SETITEMS": lambda _: self._set_items(self._pop_to_mark()),
        }

    def run(self, program: bytes) -> Any:
        """Return the value that the pickle describes."""
        stream = io.BytesIO(program)
        for _ in range(MAX_OPCODES):
            code = stream.read(1).decode("latin-1")
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise CheckpointError("data.pkl ends early or is not a pickle")
            if opcode.name == "STOP":
                return self._pop(1)[0]
            if opcode.name not in self._steps:
                raise CheckpointError(
                    f"data.pkl uses {opcode.name}, which no state dict of dense tensors needs"
                )
            self._steps[opcode.name](_read_argument(opcode, stream))
        raise CheckpointError(f"data.pkl has more than {MAX_OPCODES} instructions")

    def _stack_push(self, value: Any) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def _pop(self, n: int) -> list[Any]:
        """Take the `n` newest values off the stack, oldest first."""
        if len(self._stack) < n:
            raise CheckpointError("data.pkl takes more values than it has put")
        values = self._stack[-n:]
        del self._stack[-n:]
        return values

    def _mark(self, _: Any) -> None:
        """Begin a new stack above the present one."""
        if len(self._outer) == MAX_MARKS:
            raise CheckpointError("data.pkl is nested too deeply")
        self._outer.append(self._stack)
        self._stack = []

    def _pop_to_mark(self) -> list[Any]:
        """Return all values since the newest mark and go back to the stack below it."""
        if not self._outer:
            raise CheckpointError("data.pkl looks for a mark that it has not set")
        values, self._stack = self._stack, self._outer.pop()
        return values

    def _remember(self, index: int) -> None:
        """Note the newest value under an index."""
        self._memo[index] = self._newest()

    def _recall(self, index: int) -> None:
        """Push a value that was noted under an index."""
        if index not in self._memo:
            raise CheckpointError("data.pkl recalls a value that it has not noted")
        self._stack.append(self._memo[index])

    def _newest(self) -> Any:
        """Return the newest value and leave it on the stack."""
        if not self._stack:
            raise CheckpointError("data.pkl takes more values than it has put")
        return self._stack[-1]

    def _build(self, _: Any) -> None:
        """Drop the attributes of a dict: a state dict carries its modules' versions as such."""
        attributes = self._pop(1)[0]
        if not isinstance(attributes, dict) or not isinstance(self._newest(), dict):
            raise CheckpointError("data.pkl sets attributes of something that is not a state dict")

    def _set_items(self, values: list[Any]) -> None:
        """Put keys and values, alternating, into the dict that is newest on the stack."""
        target = self._newest()
        keys = values[::2]
        if not isinstance(target, dict) or len(values) % 2:
            raise CheckpointError("data.pkl puts items into something that is not a dict")
        if not all(isinstance(key, str) for key in keys):
            raise CheckpointError("data.pkl has a dict with keys that are not text")
        for key, value in zip(keys, values[1::2], strict=True):
            if key in target:
                raise CheckpointError(f"data.pkl sets {quote(key)} twice")
            target[key] = value


def _read_argument(opcode: pickletools.OpcodeInfo, stream: io.BytesIO) -> Any:
    """Return the argument that follows an instruction, or None if it takes none."""
    try:
        if opcode.name == "GLOBAL":
            # pickletools would undo escapes in these two lines, which pickle itself does not.
            return [stream.readline().decode().removesuffix("\n") for _ in range(2)]
        return opcode.arg.reader(stream) if opcode.arg is not None else None
    except ValueError as error:
        raise CheckpointError(f"data.pkl is damaged: {error}") from error


def _global(module: Any, name: Any) -> _Global:
    """Return the name of one of the few things that a dense state dict refers to."""
    known = {"collections.OrderedDict", *_REBUILDERS, *STORAGE_DTYPES}
    full_name = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
    if full_name not in known:
        raise CheckpointError(
            f"data.pkl refers to {quote(full_name)}: only dense tensors of float16, bfloat16, "
            "float32, int64, int32 and bool are read, and nothing was executed"
        )
    return _Global(full_name)


def _storage(description: Any) -> Storage:
    """Return the storage that a persistent id `("storage", type, key, device, numel)` names."""
    if not isinstance(description, tuple) or len(description) != 5:
        raise CheckpointError("data.pkl describes a storage in an unknown way")
    word, kind, key, _, numel = description
    dtype = STORAGE_DTYPES.get(kind.name) if isinstance(kind, _Global) else None
    sound = type(word) is str and word == "storage" and isinstance(key, str) and _is_count(numel)
    if dtype is None or not sound:
        raise CheckpointError("data.pkl describes a storage in an unknown way")
    return Storage(key, dtype, numel)


def _is_count(value: Any, bound: int = 1 << 48) -> bool:
    """Say whether a value is an integer that an offset, a stride or a storage's size can be."""
    return type(value) is int and 0 <= value < bound


def _are_counts(values: Any, bound: int = 1 << 48) -> bool:
    """Say whether a value is a tuple of few enough counts to be a shape or strides."""
    return (
        isinstance(values, tuple)
        and len(values) <= MAX_AXES
        and all(_is_count(value, bound) for value in values)
    )


def _rebuild_tensor(arguments: tuple[Any, ...]) -> View:
    """Return the view `(storage, offset, shape, strides, ...)` if it lies within its storage."""
    if len(arguments) not in (6, 7):
        raise CheckpointError("data.pkl describes a tensor in an unknown way")
    storage, offset, shape, strides = arguments[:4]
    sound = isinstance(storage, Storage) and _are_counts(shape, MAX_SIZE) and _are_counts(strides)
    if not sound or not _is_count(offset) or len(shape) != len(strides):
        raise CheckpointError("data.pkl describes a tensor in an unknown way")
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    numel = math.prod(shape)
    if numel and (last >= storage.numel or numel > storage.numel):
        raise CheckpointError(
            f"a tensor of shape {shape} does not lie in its storage of {storage.numel} elements"
        )
    return View(storage, offset, shape, strides)


def _rebuild_parameter(arguments: tuple[Any, ...]) -> View:
    """Return the tensor that a parameter `(tensor, requires_grad, hooks)` wraps."""
    if len(arguments) != 3 or not isinstance(arguments[0], View):
        raise CheckpointError("data.pkl describes a parameter in an unknown way")
    return arguments[0]


_REBUILDERS: dict[str, Callable[[tuple[Any, ...]], View]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}


def _call(function: Any, arguments: Any) -> Any:
    """Do what a call of a known name with these arguments means: a dict, or a tensor."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise CheckpointError("data.pkl calls something that is not a function")
    if function.name == "collections.OrderedDict" and not arguments:
        return {}
    if function.name not in _REBUILDERS:
        raise CheckpointError(f"data.pkl calls {function.name}, which is not how tensors are made")
    return _REBUILDERS[function.name](arguments)


def _state_dict(value: Any) -> dict[str, View]:
    """Return the value if it is a dict from printable names to tensors.

    Trainers put such a dict into another, alone under `state_dict` or `model`: that is undone once.
    """
    if isinstance(value, dict) and len(value) == 1:
        (name,) = value
        value = value[name] if name in WRAPPERS and isinstance(value[name], dict) else value
    if not isinstance(value, dict):
        raise CheckpointError(f"it holds a {type(value).__name__}, not a state dict of tensors")
    for name, view in value.items():
        if not isinstance(view, View):
            raise CheckpointError(
                f"{quote(name)} is a {type(view).__name__}, not a tensor; save the plain state "
                "dict of the model"
            )
        if not name.isprintable() or len(name) > 256:
            raise CheckpointError(f"{quote(name)} is not a name that a tensor can have")
    return value
