"""Files made to harm: planted attacks are refused by name, thousands of mutants do no harm.

Every mutant gives a typed error or a right load: no other exception, no work beyond two seconds,
no large allocation, nothing executed, no file outside the output folder. By default 50 of every
kind, with `--exactness broad` 20,000 in all; MLX_EAGLE_MUTANTS sets another number. Mutant `i` is
the same in every run.
"""

import contextlib
import copy
import io
import itertools
import json
import os
import pickletools
import random
import resource
import shutil
import signal
import struct
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np
import pytest

from mlx_eagle.convert.checkpoint import read_manifest, read_weights
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.folders import find_weights
from mlx_eagle.heads.load import load_head

H, MLP, V, W = 16, 24, 32, 8
TARGET = {"model_type": "llama", "hidden_size": H, "num_hidden_layers": 9, "vocab_size": V}
HEAD = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1},
    **{"hidden_size": H, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": V},
    **{"draft_vocab_size": W, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    **{"rope_scaling": {"type": "linear", "factor": 2.0}, "max_position_embeddings": 512},
}
NORMS = ("hidden_norm", "input_layernorm", "post_attention_layernorm")
SHAPES = {
    **{"fc": (H, 3 * H), "norm": (H,), "lm_head": (W, H), "midlayer.mlp.down_proj": (H, MLP)},
    **{f"midlayer.{name}": (H,) for name in NORMS},
    **{f"midlayer.mlp.{name}_proj": (MLP, H) for name in ("gate", "up")},
    **{f"midlayer.self_attn.{name}_proj": (8, 2 * H) for name in "kv"},
    **{"midlayer.self_attn.q_proj": (16, 2 * H), "midlayer.self_attn.o_proj": (H, 16)},
}
IDS = np.array([1, 2, 3, 5, 8, 13, 21, 30])
NOISE = np.random.default_rng(0)
TENSORS: dict[str, np.ndarray] = {
    **{f"{n}.weight": NOISE.standard_normal(size).astype("float16") for n, size in SHAPES.items()},
    **{"d2t": IDS - np.arange(W), "t2d": np.isin(np.arange(V), IDS)},
}
TYPES = {"float16": ("F16", "Half"), "int64": ("I64", "Long"), "bool": ("BOOL", "Bool")}


def header_of(tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    header, end = {}, 0
    for name, array in tensors.items():
        entry = {"dtype": TYPES[str(array.dtype)][0], "shape": list(array.shape)}
        header[name] = entry | {"data_offsets": [end, end := end + array.nbytes]}
    return header


def safetensors(header: Any, tensors: dict[str, np.ndarray] = TENSORS) -> bytes:
    code = header if isinstance(header, bytes) else json.dumps(header).encode()
    blocks = b"".join(array.tobytes() for array in tensors.values())
    return struct.pack("<Q", len(code)) + code + blocks


BIN, SAFE, CONFIG = "pytorch_model.bin", "model.safetensors", "config.json"
MAP = "model.safetensors.index.json"
HEADER = header_of(TENSORS)
SHARDS = {name: f"model-{1 + (name > 'm')}.safetensors" for name in TENSORS}


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def tensor(key: int, kind: str, numel: int, shape: Any, strides: Any) -> bytes:
    kind_and_key = f"ctorch\n{kind}Storage\n".encode() + text(str(key))
    block = b"(" + text("storage") + kind_and_key + text("cpu") + number(numel) + b"tQ" + number(0)
    for values in (shape, strides):
        block += b"(" + b"".join(map(number, values)) + b"t"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + block + b"\x89ccollections\nOrderedDict\n)RtR"


def program(**changes: bytes) -> bytes:
    """Return the pickle of the head; `changes` are further tensors, or replace some of its own."""
    codes = {}
    for key, (name, array) in enumerate(TENSORS.items()):
        strides = [stride // array.itemsize for stride in array.strides]
        codes[name] = tensor(key, TYPES[str(array.dtype)][1], array.size, array.shape, strides)
    items = b"".join(text(name) + code for name, code in (codes | changes).items())
    return b"\x80\x02}(" + items + b"u."


def archive(code: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as bundle:
        bundle.writestr("archive/data.pkl", code)
        for key, array in enumerate(TENSORS.values()):
            bundle.writestr(f"archive/data/{key}", array.tobytes())
    return file.getvalue()


PROGRAM = program()
GOOD, GOOD_BIN = safetensors(HEADER), archive(PROGRAM)


class Folders:
    """A head, a target and an output folder under one root, which nothing may leave."""

    def __init__(self, root: Path):
        self.root, self.head, self.out = root, root / "head", root / "out"
        for folder, config in ((self.head, HEAD), (root / "target", TARGET)):
            folder.mkdir()
            (folder / CONFIG).write_text(json.dumps(config))

    def write(self, name: str, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (self.head / name).unlink(missing_ok=True)  # some file systems are slow to truncate
        (self.head / name).write_bytes(data)

    def write_sound(self, file: str) -> None:
        """Write the head: in one file, in two shards if `file` is their index."""
        if file != MAP:
            return self.write(file, GOOD if file == SAFE else GOOD_BIN)
        for shard in set(SHARDS.values()):
            part = {name: TENSORS[name] for name in TENSORS if SHARDS[name] == shard}
            self.write(shard, safetensors(header_of(part), part))
        return self.write(MAP, {"weight_map": SHARDS})

    def convert(self) -> None:
        convert_head(self.head, self.root / "target", self.out, bits=None)


class Watch:
    """Notes what Python's audit events tell: code that runs, and writing outside of a root."""

    runs = ("os.system", "os.exec", "subprocess.Popen", "exec", "pickle.find_class")
    writes = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link")
    root: ClassVar[str] = ""
    seen: ClassVar[list[str]] = []

    @classmethod
    def see(cls, event: str, arguments: Any) -> None:
        if cls.root:
            opens = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            place = str(arguments[0]) if opens or event in cls.writes else cls.root
            code = getattr(arguments[0], "co_filename", "") if event in cls.runs else "/import"
            if not os.path.abspath(place).startswith(cls.root) or not os.path.isabs(code):
                cls.seen.append(f"{event} {arguments}")


sys.addaudithook(Watch.see)


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Fail if the block works for two seconds, or waits for a minute."""
    start = time.process_time()
    signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert time.process_time() - start < 2


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folders]:
    """Yield folders; fail if the test runs code, writes elsewhere, or grows by 192 MB.

    On Linux memory that is only reserved counts as well: beyond a gigabyte it is a MemoryError.
    """
    folders = Folders(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and needed against power cuts only
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for file in (BIN, SAFE):  # so that what is imported late is there
        folders.write_sound(file)
        folders.convert()
        shutil.rmtree(folders.out)
        (folders.head / file).unlink()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits"))
    Watch.seen.clear()
    Watch.root = str(tmp_path)
    yield folders
    Watch.root = ""
    signal.signal(signal.SIGALRM, before)
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert not Watch.seen
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * unit < 192 << 20


@pytest.mark.parametrize("file", ["medusa_lm_head.pt", BIN, SAFE, MAP])
def test_unharmed_head_converts_from_every_kind_of_file(folders: Folders, file: str) -> None:
    folders.write_sound(file)
    folders.convert()
    assert np.array_equal(np.array(load_head(folders.out).fc.weight), TENSORS["fc.weight"])


def bomb() -> bytes:
    """Return a `.bin` file of four megabytes that unpacks to almost four gigabytes."""
    packer, file = zlib.compressobj(9, wbits=-15), io.BytesIO(GOOD_BIN)
    megabyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    with zipfile.ZipFile(file, "a") as bundle:
        bundle.writestr("archive/data/99", megabyte * 4000 + packer.flush())
        bundle.filelist[-1].compress_type = zipfile.ZIP_DEFLATED
        bundle.filelist[-1].file_size = 4000 << 20
    return file.getvalue()


OS_SYSTEM = b"\x80\x02cos\nsystem\n(" + text("id") + b"tR."
EMPTY = {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
MANY = safetensors({f"{i}": EMPTY for i in range(20_000)} | HEADER)
# More attacks: the tests of files/, test_pickle_reader and test_torch_files.
ATTACKS: dict[str, tuple[str, bytes, str]] = {
    "os.system": (BIN, archive(OS_SYSTEM), "model.bin: data.pkl refers to 'os.system'"),
    "os.system in .pt": ("x.pt", archive(OS_SYSTEM), "x.pt: data.pkl refers to 'os.system'"),
    "zip bomb": (BIN, bomb(), "model.bin: entry 'archive/data/99' is compressed"),
    "storage of two types": (
        BIN,
        archive(program(x=tensor(0, "Float", 1, (), ()))),
        "one storage in two ways",
    ),
    "path upwards": (MAP, b'{"weight_map":{"x":"../y.safetensors"}}', "not a .safetensors file of"),
    "header of 100 GB": (SAFE, struct.pack("<Q", 100 << 30) + b"{}", "claims 107374182400 bytes"),
    "thousands of unknown tensors": (SAFE, MANY, "and [0-9]+ more"),
    "endless config": (CONFIG, b'{"x":' * 200_000, "config.json is not readable"),
    "millions of lists": (CONFIG, b'{"x":[' + b"[]," * 600_000, "more than 500000 objects"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_planted_attack_is_refused_by_name(folders: Folders, name: str) -> None:
    file, content, message = ATTACKS[name]
    if file in (MAP, CONFIG):
        folders.write_sound(MAP)
    folders.write(file, content)
    with quick(), pytest.raises(CheckpointError, match=message) as caught:
        folders.convert()
    assert len(str(caught.value)) < 4000
    assert sorted(item.name for item in folders.root.iterdir()) == ["head", "target"]


HOSTILE: list[Any] = [
    *(None, True, 0, -1, -0.0, 1, 3, 7, 1 << 31, 1 << 63, -(1 << 63), 10**39, 10**400, 1e400, 0.5),
    *(float("nan"), 1e-320, "", "x" * 1000, "\0", "\x1b[2J", "\ud800", "../../x", "NaN", f"{H}"),
    *("silu", "llama3", "yarn", [], [[]], {}, {"": {}}, [0] * 100, [1e400], [1 << 40], [2, 4, 6]),
    *({"type": "llama3"}, {"rope_type": ["linear"]}, {"rope_type": "yarn", "factor": -1}),
]
KEYS = """head_dim rope_parameters rope_scaling eagle_config norm_before_residual fc_norm taps
    norm_output target_hidden_size speculators_model_type transformer_layer_config ttt_length
    eagle_aux_hidden_state_layer_ids target_layer_ids num_target_layers medusa_num_heads mlp_bias
    sliding_window layer_types attention_bias quantization_config text_config block_size shape
    dtype __metadata__ weight_map partial_rotary_factor num_hidden_layers hidden_act x \x1b \0"""


def places(value: Any) -> list[tuple[Any, Any]]:
    if not isinstance(value, dict | list):
        return []
    keys = list(value) if isinstance(value, dict) else range(len(value))
    return [(value, key) for key in keys] + [p for key in keys for p in places(value[key])]


def mutate_json(value: Any, source: random.Random) -> bytes:
    value = copy.deepcopy(value)
    for _ in range(source.choice([1, 1, 2, 4])):
        container, key = source.choice(places(value) or [({"": 0}, "")])
        fresh = copy.deepcopy(source.choice(HOSTILE))
        match source.randrange(6):
            case 0 | 1:
                container[key] = fresh
            case 2:
                container.pop(key)
            case 3:
                container[key] = copy.deepcopy(value)
            case 4 if type(container[key]) is int:
                container[key] = source.choice([-1, 0, 1, 2, 3]) * container[key] + 1
            case 4 | 5 if isinstance(container, dict):
                container[source.choice(KEYS.split())] = fresh
    code = json.dumps(value).encode()
    return mutate_bytes(code, source) if source.random() < 0.1 else code


def mutate(parts: list[bytes], source: random.Random, fresh: Callable[[], bytes]) -> bytes:
    """Return parts joined, of which some are replaced, removed, repeated or exchanged."""
    for _ in range(source.choice([1, 1, 2, 3])):
        at, other = source.randrange(len(parts)), source.randrange(len(parts))
        match source.randrange(5):
            case 0 | 1:
                parts[at] = fresh()
            case 2 if len(parts) > 64:
                del parts[at : at + source.choice([1, 2, 8, 64])]
            case 3:
                parts[at:at] = parts[other : other + source.choice([1, 2, 8, 64])]
            case 4:
                parts[at], parts[other] = parts[other], parts[at]
    return b"".join(parts)


def mutate_bytes(data: bytes, source: random.Random) -> bytes:
    at = source.randrange(len(data))
    parts = [bytes([byte]) for byte in data[at : at + 200]]
    return data[:at] + mutate(parts, source, lambda: source.randbytes(1)) + data[at + 200 :]


def mutate_program(source: random.Random) -> bytes:
    starts = [start for _, _, start in pickletools.genops(PROGRAM)]
    parts = [PROGRAM[a:b] for a, b in itertools.pairwise([*starts, len(PROGRAM)])]
    return mutate(parts, source, lambda: number(source.choice([-1, 0, 3, 1 << 31, 1 << 47])))


def mutate_tensors(source: random.Random) -> bytes:
    """Return a sound safetensors file with tensors missing, renamed, reshaped, not finite."""
    tensors = dict(TENSORS)
    for _ in range(source.choice([1, 1, 2])):
        name, other = source.choice(list(tensors)), source.choice(list(tensors))
        array = tensors.pop(name)
        noise = np.frombuffer(source.randbytes(array.nbytes), array.dtype).reshape(array.shape)
        short = array[: source.randrange(len(array) + 1)]
        match source.randrange(4):
            case 0 | 1:
                tensors[name] = source.choice([array.reshape(-1), array[None], short, noise])
            case 2:
                tensors[source.choice([other, f"{name}.{other}"])] = array
    return safetensors(header_of(tensors), tensors)


# What is mutated: the layout of the folder, the file, and how its mutants are made.
MUTATIONS: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    "safetensors bytes": (SAFE, lambda s: mutate_bytes(GOOD[:2000], s) + GOOD[2000:]),
    "safetensors header": (SAFE, lambda s: safetensors(mutate_json(HEADER, s))),
    "tensors": (SAFE, mutate_tensors),
    "index": (MAP, lambda s: mutate_json({"weight_map": SHARDS}, s)),
    "config": (CONFIG, lambda s: mutate_json(HEAD, s)),
    "target": ("../target/config.json", lambda s: mutate_json(TARGET, s)),
    "archive bytes": (BIN, lambda s: mutate_bytes(GOOD_BIN, s)),
    "pickle bytes": (BIN, lambda s: archive(mutate_bytes(PROGRAM, s))),
    "pickle instructions": (BIN, lambda s: archive(mutate_program(s))),
}


def read_all(folder: Path) -> None:
    """Read a folder's weights and compare them with what its headers say."""
    manifest = read_manifest(folder)
    weights = {n: array for file in find_weights(folder) for n, array in read_weights(file).items()}
    mx.eval(weights)
    assert {name: array.shape for name, array in weights.items()} == {
        name: info.shape for name, info in manifest.items()
    }


def attempt(read: Callable[[], None]) -> bool:
    """Say whether a mutant is read; if it is not, the error is typed, short and printable."""
    message = ""
    with quick():
        try:
            read()
        except EagleError as error:
            message = str(error)
    assert len(message) < 4000 and message.isprintable(), message
    return not message


@pytest.fixture
def n_mutants(is_quick: bool) -> int:
    """How many mutants there are of every kind."""
    n = int(os.environ.get("MLX_EAGLE_MUTANTS", 450 if is_quick else 20_000))
    return -(-n // len(MUTATIONS))


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutants_give_a_typed_error_or_a_right_load(
    folders: Folders, kind: str, n_mutants: int
) -> None:
    file, mutant = MUTATIONS[kind]
    folders.write_sound(file if file in (BIN, MAP) else SAFE)
    before = set(folders.root.rglob("*"))
    for i in range(n_mutants):
        folders.write(file, mutant(random.Random(f"{kind} {i}")))
        if file in (SAFE, BIN):
            attempt(lambda: read_all(folders.head))
        if attempt(folders.convert):
            assert {item.name for item in folders.out.iterdir()} == {CONFIG, SAFE}
            load_head(folders.out)
            shutil.rmtree(folders.out)
    assert set(folders.root.rglob("*")) == before
