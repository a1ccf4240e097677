"""The planner's report on an answer: what it chose, and what it expected and got of that."""

from typing import TYPE_CHECKING

from mlx_eagle.cli.terminal.display import table

if TYPE_CHECKING:
    from mlx_eagle.decoding.stats import GenerationStats


def explain(stats: "GenerationStats") -> str:
    """Return the planner's side of an answer, a line per subject."""
    planned = stats.planned
    if planned is None:
        return table({"planner": f"not asked ({stats.speculation})"})
    rows = {
        "costs": f"{planned.calibration}; {1e3 * planned.plain_seconds:.1f} ms per plain token",
    }
    if planned.rounds:
        share = planned.plain_rounds / planned.rounds
        rows["plain"] = f"{planned.plain_rounds} of {planned.rounds} rounds ({share:.0%})"
    if n_drafted := planned.drafted_rounds:
        rows |= {
            "rows": _distribution(planned.rounds_by_rows),
            "levels": _distribution(planned.rounds_by_depth),
            "first token": f"right in {planned.first_right / n_drafted:.0%} of these rounds",
            "tokens": f"{planned.tokens / n_drafted:.2f} per drafted round, "
            f"{planned.expected_tokens / n_drafted:.2f} expected",
            "time": f"{1e3 * planned.seconds / n_drafted:.1f} ms per drafted round, "
            f"{1e3 * planned.expected_seconds / n_drafted:.1f} expected",
        }
    if stats.generation_tps:
        gain = stats.generation_tps * planned.plain_seconds
        rows["speed"] = f"{gain:.2f} times what plain decoding is expected to give"
    return table(rows)


def _distribution(rounds: dict[int, int]) -> str:
    """Return rounds by a number, e.g. "2 in 31 %, 8 in 69 %"."""
    total = sum(rounds.values())
    return ", ".join(f"{n} in {count / total:.0%}" for n, count in sorted(rounds.items()))
