"""A report as Markdown, from its JSON-ready object alone: a stored one can be shown again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_eagle.bench.markdown_table import as_table, cell_text
from mlx_eagle.bench.measure import PROBE_DEPTH
from mlx_eagle.bench.metrics import ALL
from mlx_eagle.bench.papers_markdown import papers_parts
from mlx_eagle.bench.specs import PLAIN
from mlx_eagle.bench.text_comparison import BUG, TOLERANCES

Report = Mapping[str, Any]


def to_markdown(report: Report, pictures: Sequence[Path] = ()) -> str:
    """Return a report as Markdown.

    Args:
        report: what `build_report` returned, or a stored one.
        pictures: files to show, which lie beside the Markdown.
    """
    parts = [f"# mlx-eagle bench\n\n{_headline(report)}", *papers_parts(report)]
    for temperature in report["trial"]["temperatures"]:
        rows = [row for row in report["summary"] if row["temperature"] == temperature]
        if len(set(report.get("heads", {}).values())) > 1:
            parts.append(f"## Side by side, {_at(temperature)}\n\n{_side_by_side(report, rows)}")
        parts.append(f"## Speed, {_at(temperature)}\n\n{_speed(rows)}")
        parts.append(f"## Time of a round, {_at(temperature)}\n\n{_split(rows)}")
    if report["n_alpha"] or any(row["acceptance_length"] for row in report["summary"]):
        parts.append(f"## Acceptance\n\n{_acceptance(report)}")
    parts.append(f"## Equality\n\n{_equality(report)}")
    parts += [f"![{picture.stem}]({picture.name})" for picture in pictures]
    parts.append(f"## Conditions\n\n{_conditions(report)}")
    return "\n\n".join(parts) + "\n"


def _headline(report: Report) -> str:
    """Return the result in a line per temperature and contestant."""
    lines = []
    for row in report["summary"]:
        if row["category"] == ALL and row["contestant"] != PLAIN:
            length = row["acceptance_length"]
            accepted = f", acceptance length {length:.2f}" if length else ""
            lines.append(
                f"- **{cell_text(row['contestant'])}**, {_at(row['temperature'])}: "
                f"{row['speedup']:.2f} times plain decoding{accepted}"
            )
    for row in report.get("slowest", []):
        lines.append(
            f"- {cell_text(row['contestant'])}, {_at(row['temperature'])}: in no category below "
            f"{row['speedup']:.2f} times plain decoding ({cell_text(row['category'])})"
        )
    bugs = report["equality"]["n_bugs"]
    lines += [f"- **{bugs} texts differ from plain decoding's: a BUG**"] if bugs else []
    return "\n".join(lines or ["Only plain decoding was measured."])


def _side_by_side(report: Report, rows: Sequence[Report]) -> str:
    """Return a line for each contestant that drafts: speed-up, acceptance length, n-alpha."""
    alphas = {
        entry["head"]: entry["values"]
        for entry in report["n_alpha"]
        if entry["category"] == ALL and entry["temperature"] == rows[0]["temperature"]
    }
    depth = max(map(len, alphas.values()), default=0)
    titles = ["contestant", "x plain", "acceptance length"]
    table = [[*titles, *(f"{n}-alpha" for n in range(depth))]]
    for row in (row for row in rows if row["category"] == ALL and row["acceptance_length"]):
        values = alphas.get(report["heads"].get(row["contestant"]), [])
        cells = [row["contestant"], f"{row['speedup']:.2f}", f"{row['acceptance_length']:.2f}"]
        table.append([*cells, *("" if v is None else f"{v:.2f}" for v in values)])
    return as_table(table)


def _speed(rows: Sequence[Report]) -> str:
    """Return the table of speeds."""
    head = ["category", "contestant", "tokens/s", "median (min to max)", "x plain"]
    head += ["with prompt", "acceptance length", "peak memory"]
    body = []
    for row in rows:
        spread, length = row["spread"], row["acceptance_length"]
        cells = [row["category"], row["contestant"], f"{row['tokens_per_second']:.1f}"]
        cells += [f"{spread['median']:.1f} ({spread['low']:.1f} to {spread['high']:.1f})"]
        cells += [f"{row['speedup']:.2f}", f"{row['speedup_with_prompt']:.2f}"]
        cells += [f"{length:.2f}" if length else "", _size(row["peak_memory_bytes"])]
        body.append(cells)
    return as_table([head, *body])


def _split(rows: Sequence[Report]) -> str:
    """Return where a round's time goes, over all prompts."""
    names = ("draft", "verify", "host")
    body = [["contestant", *(f"{name} ms" for name in names), "host share"]]
    for row in (row for row in rows if row["category"] == ALL and row["n_rounds"]):
        parts = [row[f"{name}_seconds"] for name in names]
        cells = ["" if s is None else f"{1e3 * s / row['n_rounds']:.2f}" for s in parts]
        share = "" if parts[2] is None else f"{parts[2] / max(row['seconds'], 1e-9):.1%}"
        body.append([row["contestant"], *cells, share])
    return as_table(body) + "\n\nEmpty where the parts were not told apart: on a GPU, in mlx-lm."


def _acceptance(report: Report) -> str:
    """Return acceptance by depth, and n-alpha by category."""
    drafting = [row for row in report["summary"] if row["acceptance_by_depth"]]
    rows = [row for row in drafting if row["category"] == ALL]
    depth = max((len(row["acceptance_by_depth"]) for row in rows), default=0)
    table = [["contestant", "temperature", *(f"depth {d + 1}" for d in range(depth))]]
    for row in rows:
        shares = [f"{share:.2f}" for share in row["acceptance_by_depth"]]
        table.append([row["contestant"], f"{row['temperature']:g}", *shares])
    parts = []
    if rows:
        parts.append("Share of the rounds that drafted so deep in which that depth was accepted:")
        parts.append(as_table(table))
    if report["n_alpha"]:
        is_forced = "data_sets" in report
        note, counted = (FORCED_NOTE, "positions") if is_forced else (ALPHA_NOTE, "rounds")
        parts += [note, _alpha_table(report["n_alpha"], counted)]
    return "\n\n".join(parts)


ALPHA_NOTE = (
    f"n-alpha (EAGLE-3, arXiv 2503.01840), from an untimed run of every prompt with a fixed chain "
    f"of {PROBE_DEPTH} (shorter where the head is), without a tree: of the rounds whose first n "
    "drafted tokens were accepted, the share in which token n + 1 is accepted too. The head's "
    "input then holds n states that it predicted itself."
)


FORCED_NOTE = (
    "n-alpha, teacher-forced on plain decoding's answers: at every token of an answer the head "
    "drafts a chain, and n-alpha is the share of positions at which token n + 1 of the chain is "
    "the one that the target wrote, given the true tokens before it. Prompts, system prompt and "
    "chat template are left out; the first token of an answer, which the loop never drafts, is "
    "among its tokens. Sampled answers are compared with the head's likeliest token."
)


def _alpha_table(entries: Sequence[Report], counted: str) -> str:
    """Return n-alpha by category; `counted` is what it is a share of."""
    depth = max(len(entry["values"]) for entry in entries)
    titles = ["head", "temperature", "category", counted]
    table = [[*titles, *(f"{n}-alpha" for n in range(depth))]]
    for entry in entries:
        values = ["" if v is None else f"{v:.2f}" for v in entry["values"]]
        name, temperature = entry["head"], f"{entry['temperature']:g}"
        table.append([name, temperature, entry["category"], str(entry["n_rounds"]), *values])
    return as_table(table)


def _equality(report: Report) -> str:
    """Return what became of the comparison of texts."""
    found = report["equality"]
    tolerances = ", ".join(f"{str(k).split('.')[-1]} {v:g}" for k, v in TOLERANCES.items())
    lines = [
        f"{found['n_compared']} texts were compared with plain decoding's, token by token: "
        f"{len(found['differences'])} differ, {found['n_bugs']} of them by more than a near-tie. "
        "A near-tie is a first difference at which the target's logits (for sampled text: the "
        f"logits with their draw) are at most so far apart, by the type of the logits: "
        f"{tolerances}. mlx-lm draws its own noise, so its sampled texts are not compared."
    ]
    if found["differences"]:
        columns = ["kind", "contestant", "temperature", "prompt", "position", "expected", "found"]
        table = [[*columns, "gap", "tolerance"]]
        for d in sorted(found["differences"], key=lambda d: d["kind"] != BUG):
            cells = [d["kind"], d["contestant"], f"{d['temperature']:g}", d["prompt_id"]]
            cells += [d["position"], d["expected"], d["found"], d["gap"], d["tolerance"]]
            table.append([_cell(cell) for cell in cells])
        lines.append(as_table(table))
    return "\n\n".join(lines)


def _conditions(report: Report) -> str:
    """Return machine, versions, models, prompts and settings."""
    trial, prompts = report["trial"], report["prompts"]
    categories = ", ".join(f"{name} {n}" for name, n in prompts["categories"].items())
    machine = dict(report["machine"])
    memory = machine.pop("memory_bytes")
    rows = [["condition", "value"], ["command", report["command"]], ["date", report["date"]]]
    rows += [["memory", _size(memory)]] if memory else []
    for key, value in (machine | report["models"]).items():
        rows.append([key.replace("_", " "), _cell(value)])
    if exchanged := report.get("communication"):
        sums, nbytes = exchanged["sums_per_round"], exchanged["bytes_per_round"]
        rows += [["hosts", report["hosts"]]]
        rows += [["communication of a round", f"{sums:.1f} sums, {nbytes:.0f} bytes"]]
    rows += [["prompts", f"{prompts['source']}: {categories}"]]
    if left_out := ", ".join(f"{name} {n}" for name, n in prompts.get("left_out", {}).items()):
        rows += [["left out: longer than the context", left_out]]
    if starts := report.get("starts"):
        rows += [["begun, and taken up again", ", ".join(starts)]]
    rows += [["contestants", ", ".join(report["contestants"])]]
    rows += [[key.replace("_", " "), _cell(value)] for key, value in trial.items()]
    notes = [CONDITION_NOTE]
    if trial["ignore_eos"]:
        notes.append(
            "End tokens are ignored, so that every contestant generates as many tokens and short "
            "answers do not decide; `--stop-at-eos` ends answers where the model does."
        )
    return as_table(rows) + "\n\n" + " ".join(notes)


CONDITION_NOTE = (
    "Tokens per second are those of decoding; the prompt and what its round gives are left out, "
    "but for the column with prompt. Speed-ups are ratios of total times. The contestants take "
    "turns prompt by prompt, every other prompt in reverse, after a warm-up. Prompt i is sampled "
    "with seed + i."
)


def _cell(value: Any) -> str:
    """Return a value as words."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(item) for item in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _size(n_bytes: int) -> str:
    """Return a size in MB or GB."""
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.2f} GB"


def _at(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"
