"""One engine for all tests of the server: what it answers is written by each of them."""

from collections.abc import Iterator

import pytest

from served import Served


@pytest.fixture(scope="session")
def served_once() -> Iterator[Served]:
    own = Served()
    yield own
    own.worker.close()


@pytest.fixture
def served(served_once: Served) -> Iterator[Served]:
    """The engine with its own words, and nothing kept of other tests."""
    yield served_once
    engine = served_once.engine
    engine.write(None)
    engine.before = engine.prefix_cache = engine.tree = None
