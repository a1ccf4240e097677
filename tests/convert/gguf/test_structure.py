"""GGUF files made to harm: planted attacks are refused by name, mutants do no harm.

Every mutant gives a typed error or a right load: no other exception, no work beyond two seconds, no
large allocation. By default a hundred, 10,000 with `--exactness broad`; MLX_EAGLE_MUTANTS sets
another number. Mutant `i` is the same in every run.
"""

import os
import random
import resource
import shutil
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from gguf_files import byte_level, llama_facts, llama_shapes, random_tensors, tiny_llama, write
from mlx_eagle.convert.gguf.convert import convert_gguf
from mlx_eagle.convert.gguf.reader import read_gguf
from mlx_eagle.convert.gguf.structure import (
    MAX_HEADER_BYTES,
    MAX_ITEMS,
    MAX_TEXT_BYTES,
    read_structure,
)
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.folders import MAX_BYTES_VARIABLE

HUGE = (0, 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A sound file: a tiny llama whose matrices have 4 bits."""
    file = tmp_path_factory.mktemp("sound") / "x.gguf"
    write(file, tiny_llama(gguf.GGMLQuantizationType.Q4_0))
    convert_gguf(file, file.with_name("out"))  # so that what is imported late is there
    return file.read_bytes()


@pytest.fixture
def bounded(sound: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if the test grows by 192 MB, or on Linux if it only reserves more than a gigabyte."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # slow, and needed against power cuts only
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * unit < 192 << 20


def test_structure_is_what_the_package_gguf_reads(sound: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(sound)
    theirs = gguf.GGUFReader(file)
    ours = read_structure(file)
    assert [(t.name, t.kind, t.shape, t.n_bytes) for t in ours.tensors] == [
        (t.name, t.tensor_type, tuple(reversed(t.shape.tolist())), t.n_bytes)
        for t in theirs.tensors
    ]
    offsets = [ours.begin + tensor.offset for tensor in ours.tensors]
    assert offsets == [tensor.data_offset for tensor in theirs.tensors]
    metadata = {name: field.contents() for name, field in theirs.fields.items()}
    assert ours.metadata == {k: v for k, v in metadata.items() if not k.startswith("GGUF.")}


def header(n_tensors: int, n_keys: int, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def key(name: bytes, kind: int, rest: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + rest


def tensor(name: bytes, *shape: int, kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


ONES = struct.pack("<IQ", 4, 1 << 60)
ATTACKS = {
    "empty": (b"", "is not a sound GGUF file"),
    "only its name": (b"GGUF", "is not a sound GGUF file"),
    "another file": (b"PK\3\4" + bytes(60), "it does not begin with GGUF"),
    "first version": (b"GGUF" + struct.pack("<III", 1, 0, 0), "it is of version 1"),
    "other byte order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "it is of version"),
    "tensors without end": (header(2**63, 0), "claims 9223372036854775808 tensors"),
    "keys without end": (header(0, 2**63), "claims 9223372036854775808 keys"),
    "key of an exabyte": (header(0, 1, text(b"x", 2**60)), "bytes of a text"),
    "text of an exabyte": (header(0, 1, key(b"x", 8, text(b"x", 2**60))), "bytes of a text"),
    "text behind the end": (header(0, 1, key(b"x", 8, text(b"x", 999))), "ends before its header"),
    "array without end": (header(0, 1, key(b"x", 9, ONES)), f"more than {MAX_ITEMS} items"),
    "array of arrays": (header(0, 1, key(b"x", 9, struct.pack("<IQ", 9, 1))), "value of type 9"),
    "value of no type": (header(0, 1, key(b"x", 99, b"")), "value of type 99"),
    "key twice": (header(0, 2, key(b"x", 7, b"\1") * 2), "its key 'x' comes twice"),
    "key that controls": (header(0, 1, key(b"\x1b[2J", 7, b"\1")), "not a name that a key"),
    "key that is no text": (header(0, 1, key(b"\xff", 7, b"\1")), "is not a sound GGUF file"),
    "alignment of 0": (
        header(0, 1, key(b"general.alignment", 4, struct.pack("<I", 0))),
        "no power of two",
    ),
    "alignment of a gigabyte": (
        header(0, 1, key(b"general.alignment", 4, struct.pack("<I", 1 << 30))),
        "no power of two",
    ),
    "tensor of an exabyte": (header(1, 0, tensor(b"x", 2**30, 2**30)), "ends behind the end"),
    "tensor with many axes": (header(1, 0, tensor(b"x", *[1] * 64)), "64 axes of 'x'"),
    "tensor without axes": (header(1, 0, tensor(b"x")), "an impossible shape"),
    "tensor without rows": (header(1, 0, tensor(b"x", 4, 0)), "an impossible shape"),
    "tensor wider than 2**31": (header(1, 0, tensor(b"x", 2**63)), "an impossible shape"),
    "tensor of no type": (header(1, 0, tensor(b"x", 4, kind=4)), "the type 4, which is not known"),
    "half a block": (header(1, 0, tensor(b"x", 33, kind=2)), "a multiple of 32"),
    "tensors of one name": (header(2, 0, tensor(b"x", 1) * 2 + bytes(99)), "have the same name"),
    "tensors in one place": (
        header(2, 0, tensor(b"x", 9) + tensor(b"y", 9) + bytes(99)),
        "'y' overlaps",
    ),
    "tensor off the grid": (header(1, 0, tensor(b"x", 1, offset=4) + bytes(99)), "not aligned"),
    "offset near 2**64": (header(1, 0, tensor(b"x", 8, offset=2**64 - 32)), "ends behind the end"),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.usefixtures("bounded")
def test_planted_attack_is_refused_by_name(name: str, tmp_path: Path) -> None:
    content, message = ATTACKS[name]
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_gguf(tmp_path / "x.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("bounded")
def test_texts_that_a_sparse_file_only_claims_to_hold_take_no_memory(tmp_path: Path) -> None:
    """Each is short enough, and all are there: zeros that take no place on the disk."""
    n_texts, n_bytes = 100, MAX_TEXT_BYTES
    with (tmp_path / "x.gguf").open("wb") as stream:
        stream.write(header(0, 1, key(b"x", 9, struct.pack("<IQ", 8, n_texts))))
        for _ in range(n_texts):
            stream.write(struct.pack("<Q", n_bytes))
            stream.seek(n_bytes, os.SEEK_CUR)
        stream.truncate(stream.tell())
    with pytest.raises(CheckpointError, match=f"more than {MAX_HEADER_BYTES} bytes"):
        read_gguf(tmp_path / "x.gguf")


def test_file_larger_than_the_limit_is_refused(
    sound: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.gguf").write_bytes(sound)
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "1000")
    with pytest.raises(CheckpointError, match="more than the limit of 1000"):
        read_gguf(tmp_path / "x.gguf")


def test_part_of_a_model_is_refused(tmp_path: Path) -> None:
    def facts(writer: gguf.GGUFWriter) -> None:
        llama_facts(writer)
        writer.add_uint16("split.count", 3)

    content = tiny_llama()._replace(facts=facts, tensors=random_tensors(llama_shapes()))
    file = write(tmp_path / "x.gguf", content._replace(vocabulary=byte_level))
    with pytest.raises(CheckpointError, match="one of 3 parts of a model: join them first"):
        read_gguf(file)


def mutate(data: bytes, header_bytes: int, source: random.Random) -> bytes:
    """Change a few bytes, numbers or pieces, mostly of the header."""
    code = bytearray(data)
    for _ in range(source.choice([1, 1, 2, 4])):
        most = header_bytes if source.random() < 0.9 else len(code)
        at = source.randrange(min(most, len(code)))
        match source.randrange(6):
            case 0:
                code[at] = source.randrange(256)
            case 1:
                width = source.choice([4, 8])
                number = source.choice(HUGE) % (1 << 8 * width)
                code[at : at + width] = number.to_bytes(width, "little")
            case 2:
                del code[at : at + source.choice([1, 4, 8, 32])]
            case 3:
                code[at:at] = source.randbytes(source.choice([1, 4, 8]))
            case 4:
                other = source.randrange(header_bytes)
                code[at : at + 8] = data[other : other + 8]
            case 5 if source.random() < 0.2:
                del code[at:]
    return bytes(code) or b"G"


def attempt(file: Path, out: Path) -> str:
    """Convert a mutant, and return why that was refused; empty if it was read."""
    try:
        convert_gguf(file, out)
    except EagleError as error:
        return str(error)
    shutil.rmtree(out)
    return ""


@pytest.fixture
def n_mutants(is_quick: bool) -> int:
    return int(os.environ.get("MLX_EAGLE_MUTANTS", 100 if is_quick else 10_000))


@pytest.mark.usefixtures("bounded")
def test_mutants_give_a_typed_error_or_a_right_load(
    sound: bytes, n_mutants: int, tmp_path: Path
) -> None:
    file, out = tmp_path / "x.gguf", tmp_path / "out"
    file.write_bytes(sound)
    header_bytes = int(gguf.GGUFReader(file).data_offset)
    n_read = 0
    for number in range(n_mutants):
        file.write_bytes(mutate(sound, header_bytes, random.Random(number)))
        begun = time.process_time()
        message = attempt(file, out)
        n_read += not message
        assert len(message) < 4000 and message.isprintable(), number
        assert time.process_time() - begun < 2, number
        assert [item.name for item in tmp_path.iterdir()] == ["x.gguf"], number
    assert n_read > 0
