"""Cases of a parametrized test: few by default, all of them where more is asked for."""

from collections.abc import Collection, Iterable, Iterator
from itertools import product
from typing import Any

import pytest
from hypothesis import settings


def broad(*values: Any) -> Any:
    """Return a case that runs only with `--exactness broad` or `full`."""
    return pytest.param(*values, marks=pytest.mark.broad)


def narrowed(many: Iterable[Any], few: Collection[Any]) -> list[Any]:
    """Return all cases of one value, of which those in `few` are run by default."""
    return [value if value in few else broad(value) for value in many]


def rotated(many: Iterable[Any], few: Iterable[Any]) -> Iterator[Any]:
    """Yield all pairs of two lists; by default each of `many` is run with one of `few` in turn."""
    many, few = list(many), list(few)
    for (i, one), (j, other) in product(enumerate(many), enumerate(few)):
        yield pytest.param(one, other) if j == i % len(few) else broad(one, other)


def examples(share: float) -> settings:
    """Return settings for a property that is slow to try: this share of the usual examples."""
    return settings(max_examples=int(share * settings.default.max_examples))
