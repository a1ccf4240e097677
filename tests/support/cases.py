"""Cases of a parametrized test: few by default, all of them where more is asked for."""

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import pytest


def broad(*values: Any) -> Any:
    """Return a case that runs only with `--exactness broad` or `full`."""
    return pytest.param(*values, marks=pytest.mark.broad)


def rotated(many: Iterable[Any], few: Iterable[Any]) -> Iterator[Any]:
    """Yield all pairs of two lists; by default each of `many` is run with one of `few` in turn."""
    many, few = list(many), list(few)
    for (i, one), (j, other) in product(enumerate(many), enumerate(few)):
        yield pytest.param(one, other) if j == i % len(few) else broad(one, other)
