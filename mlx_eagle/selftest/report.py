"""The report of a self-test: one JSON object, one Markdown page, one line of verdict."""

import json
from typing import Any

from mlx_eagle.selftest.run import SelfTest


def verdict(found: SelfTest) -> str:
    """Return in one line whether all is well."""
    best = max(found.speeds.values(), default=0.0)
    n_ties = len(found.comparison.differences) - len(found.comparison.bugs)
    ties = f", {n_ties} of them up to a near-tie" if n_ties else ""
    if faults := found.faults:
        return f"{len(faults)} faults: {'; '.join(faults)}"
    return (
        f"sound: {found.comparison.n_compared} drafted texts equal plain decoding's{ties}; "
        f"the fastest way is {best:.2f} times as fast as plain decoding's "
        f"{found.plain_tps:.1f} tokens/s"
    )


def to_json(found: SelfTest) -> str:
    """Return all that was found."""
    fields: dict[str, Any] = {
        "verdict": verdict(found),
        "is_sound": not found.faults,
        "faults": found.faults,
        "machine": found.machine,
        "pair": found.pair,
        "compared": found.comparison.n_compared,
        "differences": [each._asdict() for each in found.comparison.differences],
        "caches": [each._asdict() for each in found.caches],
        "memory": [each._asdict() for each in found.memory],
        "kernels": found.kernels._asdict(),
        "costs": found.costs,
        "speeds": found.speeds,
        "plain_tokens_per_second": found.plain_tps,
    }
    return json.dumps(fields, indent=2)


def to_markdown(found: SelfTest) -> str:
    """Return a page to attach to a report."""
    sections = [
        f"# Self-test of mlx-eagle\n\n{verdict(found)}",
        _table("Machine", ("", ""), [(k, str(v)) for k, v in found.machine.items()]),
        _table("Pair", ("", ""), list(found.pair.items())),
        _table(
            "Texts that differ from plain decoding's",
            ("kind", "contestant", "temperature", "prompt", "token", "gap", "near-tie up to"),
            [
                (
                    *(d.kind, d.contestant, f"{d.temperature:g}", str(d.prompt_id)),
                    *(str(d.position), _number(d.gap), _number(d.tolerance)),
                )
                for d in found.comparison.differences
            ],
        ),
        _table(
            "Caches after commits",
            ("kind", "logits differ by", "rounding alone", ""),
            [
                (
                    c.kind,
                    _number(c.difference),
                    _number(c.floor),
                    "right" if c.is_right else "WRONG",
                )
                for c in found.caches
            ],
        ),
        _table(
            "Memory during one answer (MB)",
            ("tokens", "in use", "kept unused", "caches"),
            [
                (str(m.tokens), *(f"{part / 1e6:.1f}" for part in (m.active, m.unused, m.caches)))
                for m in found.memory
            ],
        ),
        _table(
            f"Few-row kernels: {found.kernels.status}",
            ("what is computed", "by rows: time over that of MLX's kernel"),
            [(what, ", ".join(verdicts)) for what, verdicts in found.kernels.tried],
        ),
        _table(
            "Whole forward passes with kernels",
            ("rows", "time over that without"),
            [(str(rows), f"{ratio:.2f}") for rows, ratio in found.kernels.forward.items()],
        ),
        _costs(found.costs),
        _table(
            f"Speed (plain: {found.plain_tps:.1f} tokens/s)",
            ("contestant", "times as fast"),
            [(name, f"{ratio:.2f}") for name, ratio in found.speeds.items()],
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _costs(costs: dict[str, Any] | None) -> str:
    """Return the cost curve: milliseconds by rows and context."""
    if costs is None:
        return "## Costs\n\nnot measured"
    contexts = [str(context) for context in costs["contexts"]]
    rows = [
        (str(n), *(f"{1e3 * seconds:.2f}" for seconds in column))
        for n, column in costs["verify"].items()
    ]
    return _table("Milliseconds to verify rows, by cached tokens", ("rows", *contexts), rows)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a titled table; "none" where there is nothing to show."""
    if not rows:
        return f"## {title}\n\nnone"
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    cells = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join([f"## {title}", "", *head, *cells])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
