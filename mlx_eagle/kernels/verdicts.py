"""What was found of few-row kernels on a machine, kept as JSON and turned into a plan."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlx_eagle.errors import EagleError
from mlx_eagle.kernels.shapes import Shape, Variant
from mlx_eagle.kernels.trial import Verdict

Table = Mapping[Shape, Sequence[Verdict]]
Plan = Mapping[Shape, Mapping[int, Variant]]  # which kernel multiplies how many rows


def plan_of(table: Table, rows: Sequence[int] | None = None) -> Plan:
    """Return the kernels that a table keeps.

    Args:
        table: verdicts by shape.
        rows: numbers of rows for which any may be used; None for all.
    """
    plan = {
        shape: {
            v.rows: v.variant
            for v in verdicts
            if v.variant is not None and (rows is None or v.rows in rows)
        }
        for shape, verdicts in table.items()
    }
    return {shape: kept for shape, kept in plan.items() if kept}


def planned_rows(plan: Plan) -> list[int]:
    """Return the numbers of rows for which a kernel is used anywhere."""
    return sorted({n for kept in plan.values() for n in kept})


def to_fields(table: Table) -> list[dict[str, Any]]:
    """Return a table, ready for JSON."""
    return [
        {"shape": shape._asdict(), "verdicts": [_fields(verdict) for verdict in verdicts]}
        for shape, verdicts in table.items()
    ]


def from_fields(fields: Any) -> Table:
    """Return a table from what `to_fields` gave.

    Raises:
        EagleError: if it is anything else.
    """
    try:
        return {
            Shape(**{**part["shape"], "ns": tuple(part["shape"]["ns"])}): [
                _verdict(verdict) for verdict in part["verdicts"]
            ]
            for part in fields
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise EagleError(f"this is no table of kernels: {error!r}") from error


def _fields(verdict: Verdict) -> dict[str, Any]:
    variant = verdict.variant
    return {**verdict._asdict(), "variant": None if variant is None else variant._asdict()}


def _verdict(fields: Mapping[str, Any]) -> Verdict:
    variant = fields["variant"]
    return Verdict(**{**fields, "variant": None if variant is None else Variant(**variant)})
