"""What a run found: findings with lines of the kernel's source, and counters."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from metal_emulator.build import NEWEST_CLANG, OLDEST_CLANG

COUNTERS = (
    "mma",
    "simd_ops",
    "threadgroup_barriers",
    "simdgroup_barriers",
    "threadgroup_read",
    "threadgroup_written",
    "atomics",
    "threadgroup_bytes",
    "threadgroups",
)
Line = int | str | None  # of the body; "header:3" for one of the header; None where it is unknown


class Finding(TypedDict):
    """One thing that a GPU would have done without a word."""

    kind: str
    text: str
    line: Line
    other_line: Line
    count: int


class Report(list[Finding]):
    """The findings of a run.

    Attributes:
        stats: counters of the run, and for each buffer the bytes that were read and written.
    """

    def __init__(self, findings: Iterable[Finding] = ()) -> None:
        super().__init__(findings)
        self.stats: dict[str, Any] = {}

    def kinds(self) -> list[str]:
        """Return the kinds of the findings, each once, sorted."""
        return sorted({finding["kind"] for finding in self})


class EmulationError(RuntimeError):
    """A strict run found something.

    Attributes:
        report: all findings.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__("\n".join(_describe(finding) for finding in report))


def _describe(finding: Finding) -> str:
    other = f" and {finding['other_line']}" if finding["other_line"] is not None else ""
    where = f"line {finding['line']}{other}, {finding['count']} times"
    return f"{finding['kind']} ({where}): {finding['text']}"


def read_report(library: ctypes.CDLL, file: Path, buffers: Sequence[tuple[str, int]]) -> Report:
    """Return what a library found in its last run.

    Args:
        library: the loaded kernel.
        file: where it was loaded from.
        buffers: name and bytes of each buffer, in the kernel's order.
    """
    raw = _read_findings(library)
    accesses = _read_accesses(library)
    addresses = {place for _, places in raw for place in places if place}
    lines = source_lines(file, addresses | {access[0] for access in accesses})
    for finding, (first, second) in raw:
        finding["line"] = finding["line"] or lines.get(first)
        finding["other_line"] = finding["other_line"] or lines.get(second)
    report = Report(_merge(finding for finding, _ in raw))
    report.stats = _read_stats(library, buffers)
    if accesses:
        report.stats["memory_ops"] = [_memory_op(row, lines, buffers) for row in accesses]
    return report


def _merge(findings: Iterable[Finding]) -> list[Finding]:
    """Make one finding of those from the copies that unrolling makes of one source line."""
    merged: dict[tuple[str, Line, Line], Finding] = {}
    for finding in findings:
        key = (finding["kind"], finding["line"], finding["other_line"])
        if key in merged:
            merged[key]["count"] += finding["count"]
        else:
            merged[key] = finding
    return list(merged.values())


def _read_findings(library: ctypes.CDLL) -> list[tuple[Finding, tuple[int, int]]]:
    """Return each finding with the two machine addresses that it is about; 0 stands for none."""
    kind, text = ctypes.create_string_buffer(64), ctypes.create_string_buffer(1024)
    places, lines = (ctypes.c_uint64 * 2)(), (ctypes.c_uint32 * 2)()
    count = ctypes.c_uint64()
    found: list[tuple[Finding, tuple[int, int]]] = []
    while library.mtl_get_report(len(found), kind, text, places, lines, ctypes.byref(count)):
        finding = Finding(
            kind=kind.value.decode(),
            text=text.value.decode(),
            line=lines[0] or None,
            other_line=lines[1] or None,
            count=count.value,
        )
        found.append((finding, (places[0], places[1])))
    return found


def _read_stats(library: ctypes.CDLL, buffers: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """Return the counters, and the traffic of each buffer in bytes."""
    counts, traffic = (ctypes.c_uint64 * 16)(), (ctypes.c_uint64 * 3)()
    library.mtl_get_counts(counts)
    stats: dict[str, Any] = dict(zip(COUNTERS, counts, strict=False))
    for index, (name, size) in enumerate(buffers):
        library.mtl_get_region(index, traffic)
        read, written, unique = traffic
        stats[name] = {"read": read, "written": written, "unique": unique, "size": size}
    return stats


def _read_accesses(library: ctypes.CDLL) -> list[list[int]]:
    """Return one row for each load and store instruction of a run with `profile`."""
    row = (ctypes.c_uint64 * 8)()
    rows: list[list[int]] = []
    while library.mtl_get_prof(len(rows), row):
        rows.append(list(row))
    return rows


def _memory_op(
    row: Sequence[int], lines: dict[int, int | str], buffers: Sequence[tuple[str, int]]
) -> dict[str, Any]:
    address, buffer, is_write, n_ops, _, n_bytes, n_lines, n_sectors = row
    return {
        "line": lines.get(address),
        "buffer": buffers[buffer][0],
        "write": bool(is_write),
        "ops": n_ops,
        "bytes_per_op": n_bytes / n_ops,
        "lines128_per_op": n_lines / n_ops,
        "sectors32_per_op": n_sectors / n_ops,
    }


def source_lines(file: Path, addresses: Iterable[int]) -> dict[int, int | str]:
    """Return the kernel's source line of each address in a loaded library, where it has one.

    A header's line is the innermost; a body's the outermost, as functions are called from there.
    """
    wanted = sorted(addresses)
    command = _symbolizer()
    if not wanted or command is None:
        return {}
    base = _load_address(file)
    # Return addresses are those of the next instruction.
    places = [hex(address - base - 1) for address in wanted]
    said = subprocess.run(
        [*command, "-a", "-i", "-e", str(file), *places], capture_output=True, text=True, check=True
    ).stdout
    blocks = re.split(r"^0x[0-9a-f]+\n", said, flags=re.MULTILINE)[1:]
    lines: dict[int, int | str] = {}
    for address, block in zip(wanted, blocks, strict=True):
        body = re.findall(r"kernel_body:([1-9]\d*)", block)
        header = re.findall(r"kernel_header:([1-9]\d*)", block)
        if body:
            lines[address] = int(body[-1])
        elif header:
            lines[address] = f"header:{header[0]}"
    return lines


def _symbolizer() -> list[str] | None:
    """Return the program that tells an address's source lines; LLVM's answers in binutils' form."""
    versions = range(NEWEST_CLANG, OLDEST_CLANG - 1, -1)
    for name in (*(f"llvm-symbolizer-{version}" for version in versions), "llvm-symbolizer"):
        if shutil.which(name):
            return [name, "--output-style=GNU"]
    return ["addr2line"] if shutil.which("addr2line") else None


def _load_address(file: Path) -> int:
    """Return where in this process a library starts."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            addresses, _, offset = line.split()[:3]
            return int(addresses.partition("-")[0], 16) - int(offset, 16)
    raise RuntimeError(f"{file.name} is not loaded")
