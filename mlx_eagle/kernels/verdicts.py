"""What was found of few-row kernels on a machine, kept as JSON and turned into a plan."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mlx_eagle.errors import EagleError
from mlx_eagle.kernels.attention_trial import AttentionVerdict, Heads
from mlx_eagle.kernels.shapes import Shape, Variant
from mlx_eagle.kernels.trial import Verdict


class Table(NamedTuple):
    """Verdicts on products, and on attention."""

    products: Mapping[Shape, Sequence[Verdict]] = {}
    attention: Mapping[Heads, Sequence[AttentionVerdict]] = {}

    @property
    def reasons(self) -> list[str]:
        """Why kernels are not used, where they are not."""
        reasons = [v.reason for verdicts in self.products.values() for v in verdicts]
        reasons += [v.reason for verdicts in self.attention.values() for v in verdicts]
        return [reason for reason in reasons if reason]

    @property
    def lines(self) -> list[tuple[str, list[str]]]:
        """What was tried, and of every number of rows what came of it, in words."""
        products = [(str(s), [_words(v, v.ratio) for v in vs]) for s, vs in self.products.items()]
        attention = [
            (str(heads), [_words(v, *v.ratios) for v in vs]) for heads, vs in self.attention.items()
        ]
        return products + attention

    def plan(self, rows: Sequence[int] | None = None) -> "Plan":
        """Return the kernels that are used.

        Args:
            rows: numbers of rows for which any may be used; None for all.
        """
        products = {
            shape: {v.rows: v.variant for v in verdicts if v.variant is not None}
            for shape, verdicts in self.products.items()
        }
        attention = {
            heads: {v.rows: v.least for v in verdicts if v.least is not None}
            for heads, verdicts in self.attention.items()
        }
        return Plan(_limited(products, rows), _limited(attention, rows))


class Plan(NamedTuple):
    """Which kernel serves which numbers of rows.

    Attributes:
        products: the variant for each number of rows.
        attention: the cached tokens from which on each number of rows is served.
    """

    products: Mapping[Shape, Mapping[int, Variant]] = {}
    attention: Mapping[Heads, Mapping[int, int]] = {}

    @property
    def rows(self) -> list[int]:
        """The numbers of rows for which a kernel is used anywhere."""
        kept = (*self.products.values(), *self.attention.values())
        return sorted({n for rows in kept for n in rows})


def to_fields(table: Table) -> dict[str, Any]:
    """Return a table, ready for JSON."""
    return {
        "products": [
            {"shape": shape._asdict(), "verdicts": [_fields(verdict) for verdict in verdicts]}
            for shape, verdicts in table.products.items()
        ],
        "attention": [
            {"heads": heads._asdict(), "verdicts": [verdict._asdict() for verdict in verdicts]}
            for heads, verdicts in table.attention.items()
        ],
    }


def from_fields(fields: Any) -> Table:
    """Return a table from what `to_fields` gave.

    Raises:
        EagleError: if it is anything else.
    """
    try:
        products = {
            Shape(**{**part["shape"], "ns": tuple(part["shape"]["ns"])}): [
                _verdict(verdict) for verdict in part["verdicts"]
            ]
            for part in fields["products"]
        }
        attention = {
            Heads(**part["heads"]): [
                AttentionVerdict(**{**verdict, "ratios": tuple(verdict["ratios"])})
                for verdict in part["verdicts"]
            ]
            for part in fields["attention"]
        }
        return Table(products, attention)
    except (KeyError, TypeError, AttributeError) as error:
        raise EagleError(f"this is no table of kernels: {error!r}") from error


def _words(verdict: Verdict | AttentionVerdict, *ratios: float | None) -> str:
    """Return one verdict: rows, time over that of MLX's kernel, and why it is not used."""
    numbers = [f"{ratio:.2f}" for ratio in ratios if ratio is not None]
    return f"{verdict.rows}: {' '.join((*numbers, verdict.reason or 'used'))}"


def _limited(plan: Mapping[Any, dict[int, Any]], rows: Sequence[int] | None) -> dict[Any, Any]:
    """Return a plan for some numbers of rows, without what is empty then."""
    limited = {
        key: {n: kept[n] for n in kept if rows is None or n in rows} for key, kept in plan.items()
    }
    return {key: kept for key, kept in limited.items() if kept}


def _fields(verdict: Verdict) -> dict[str, Any]:
    variant = verdict.variant
    return {**verdict._asdict(), "variant": None if variant is None else variant._asdict()}


def _verdict(fields: Mapping[str, Any]) -> Verdict:
    variant = fields["variant"]
    return Verdict(**{**fields, "variant": None if variant is None else Variant(**variant)})
