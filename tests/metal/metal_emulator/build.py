"""A kernel's C++ text compiled into a library, once: libraries stay in a cache folder."""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

RUNTIME = Path(__file__).resolve().parent / "runtime"
CACHE_VARIABLE = "METAL_EMULATOR_CACHE"
COMPILER_VARIABLE = "METAL_EMULATOR_CXX"
OLDEST_CLANG = 18  # the first with arithmetic in __bf16
NEWEST_CLANG = 23
NO_COMPILER = (
    f"the Metal emulator needs clang++ {OLDEST_CLANG} or newer on Linux "
    "(apt-get install clang-19 llvm-19)"
)

# 16-bit types round after every operation, as on the GPU; nothing is fused that the source does
# not fuse. Vectorised loops would have accesses of sizes that the instrumentation leaves out.
KERNEL_FLAGS = [
    *("-std=c++20", "-O1", "-gline-tables-only", "-fPIC", "-fno-strict-aliasing"),
    *("-fno-vectorize", "-fno-slp-vectorize", "-fno-exceptions", "-ffp-contract=off"),
    *("-Xclang", "-ffloat16-excess-precision=none"),
    *("-Xclang", "-fbfloat16-excess-precision=none"),
    *("-Wno-everything", "-Werror=return-type"),
]
X86_FLAGS = ["-mf16c", "-mavx2", "-mfma"]
# The calls that these put at every load, store, index and shift end in handlers of the emulator.
CHECK_FLAGS = [
    *("-fsanitize=thread", "-mllvm", "-tsan-instrument-func-entry-exit=0"),
    "-fsanitize=bounds,shift-exponent,integer-divide-by-zero,alignment",
]
RUNTIME_FLAGS = ["-std=c++20", "-O2", "-g1", "-fPIC", "-w"]
SPACES_FLAGS = ["-std=c++20", "-fsyntax-only", "-Wno-everything", "-DMTL_SPACES"]
INCLUDES = [f"-I{RUNTIME}", f"-I{RUNTIME / 'stubs'}"]


def cache_folder() -> Path:
    """Return where compiled kernels are kept: METAL_EMULATOR_CACHE, or among the user's caches."""
    if own := os.environ.get(CACHE_VARIABLE):
        return Path(own).expanduser()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "mlx-eagle-metal-emulator"


def find_compiler() -> str | None:
    """Return the newest clang++ that can compile kernels; METAL_EMULATOR_CXX names another one."""
    if sys.platform != "linux":  # threadgroup memory is found through sections of ELF files
        return None
    if (own := os.environ.get(COMPILER_VARIABLE)) and shutil.which(own):
        return own
    for version in range(NEWEST_CLANG, OLDEST_CLANG - 1, -1):
        if shutil.which(name := f"clang++-{version}"):
            return name
    path = shutil.which("clang++")
    return "clang++" if path and _clang_version(path) >= OLDEST_CLANG else None


@functools.cache
def _clang_version(path: str) -> int:
    """Return the main version of a clang++, 0 if it does not say one."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"clang version (\d+)", said)
    return int(match[1]) if match else 0


def compiler() -> str:
    """Return the compiler.

    Raises:
        RuntimeError: if there is none.
    """
    if (found := find_compiler()) is None:
        raise RuntimeError(NO_COMPILER)
    return found


def build_library(name: str, text: str, flags: Sequence[str], *, is_checked: bool) -> Path:
    """Return the library of a kernel's text; it is compiled unless the cache folder has it.

    Raises:
        RuntimeError: if there is no compiler.
        SyntaxError: if the text does not compile.
    """
    options = [*KERNEL_FLAGS, *INCLUDES, *(CHECK_FLAGS if is_checked else []), *flags]
    if platform.machine() == "x86_64":
        options += X86_FLAGS
    key = _digest(text, compiler(), *options, _runtime_text())
    library = cache_folder() / f"{re.sub(r'[^A-Za-z0-9_]', '_', name)[:40]}-{key}.so"
    if not library.exists():
        runtime, prelude = str(_runtime_object()), str(_prelude(options))
        with _work_folder() as work:
            (work / "kernel.cpp").write_text(text)
            command = [compiler(), *options, "-include-pch", prelude]
            _run([*command, "-c", "kernel.cpp", "-o", "kernel.o"], work)
            _run([compiler(), "-shared", "-o", "kernel.so", "kernel.o", runtime, "-lm"], work)
            # Others may compile the same kernel: each puts a whole file in its place.
            os.replace(work / "kernel.so", library)
    return library


def check_spaces(text: str, flags: Sequence[str]) -> None:
    """Compile with Metal's address spaces as types of their own, without making a library.

    Instrumentation leaves pointers with address spaces out, so this is a compilation of its own.

    Raises:
        SyntaxError: if pointers of different address spaces are mixed.
    """
    with _work_folder() as work:
        (work / "kernel.cpp").write_text(text)
        _run([compiler(), *SPACES_FLAGS, *INCLUDES, *flags, "kernel.cpp"], work)


def load_library(file: Path) -> ctypes.CDLL:
    """Load a compiled kernel; its symbols stay its own."""
    return ctypes.CDLL(str(file), mode=os.RTLD_LOCAL | os.RTLD_NOW)


def _runtime_object() -> Path:
    """Return the object file of the scheduler and the checks, which all kernels share.

    Its sources are compiled as one, because most of the time goes into the headers of C++.
    """
    sources = sorted(RUNTIME.glob("*.cpp"))
    key = _digest(compiler(), *RUNTIME_FLAGS, str(RUNTIME), _runtime_text())

    def make(work: Path, file: str) -> None:
        (work / "all.cpp").write_text("".join(f'#include "{source}"\n' for source in sources))
        _run([compiler(), *RUNTIME_FLAGS, "-c", "all.cpp", "-o", file], work)

    return _made_once(f"runtime-{key}.o", make)


def _prelude(options: Sequence[str]) -> Path:
    """Return what stands before every kernel, compiled ahead for kernels with these options."""
    key = _digest(compiler(), *options, _runtime_text())
    header = str(RUNTIME / "kernel_prelude.h")

    def make(work: Path, file: str) -> None:
        _run([compiler(), *options, "-x", "c++-header", header, "-o", file], work)

    return _made_once(f"prelude-{key}.pch", make)


def _made_once(name: str, make: Callable[[Path, str], None]) -> Path:
    """Return a file of the cache folder; of several processes that miss it at once, one makes it.

    Args:
        name: of the file.
        make: called with a folder and with the name under which the file is to be left in it.
    """
    made = cache_folder() / name
    if made.exists():
        return made
    with _work_folder() as work, (cache_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            make(work, name)
            os.rename(work / name, made)
    return made


@functools.cache
def _runtime_text() -> str:
    """Return all C++ of the emulator: a library is made again when it changes."""
    files = (file for file in sorted(RUNTIME.rglob("*")) if file.is_file())
    return "".join(file.read_text() for file in files)


@contextlib.contextmanager
def _work_folder() -> Iterator[Path]:
    """A temporary folder on the cache folder's own file system, where files can be renamed."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="work-") as work:
        yield Path(work)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _run(command: Sequence[str], folder: Path) -> None:
    """Run the compiler.

    Raises:
        SyntaxError: if it fails, with what it says.
    """
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SyntaxError("the Metal source does not compile:\n" + done.stderr[:4000])
