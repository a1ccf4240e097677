"""N-gram lookup, named where a head is: instead of one, or after it."""

from pathlib import Path

import pytest

import mlx_eagle
from mlx_eagle.hub import head_choice as published
from mlx_eagle.hub.head_choice import choose_head
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.tree import TreeShape

TARGET = DEMO / "target"


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ("ngram", "n-gram lookup"),
        ("+ngram", "pydoc-eagle3 (demo) + n-gram lookup"),
    ],
)
def test_lookup_is_named_instead_of_a_head_or_after_one(head: str, named: str) -> None:
    engine = mlx_eagle.load("demo", head, calibrate=False)
    assert (engine.info.head, engine.info.speculation) == (named, "on")
    assert bool(engine.info.head_precision) is ("+" in head), "lookup has no weights"
    assert bool(engine.info.remedy) is ("+" in head), "nor anything that the doctor could find"
    prompt = "def f(a):\n    return a\n\ndef f(a):\n    return"
    assert engine.generate(prompt, max_tokens=6, tree=TreeShape.chain(2)).stats.accepted > 0


def test_lookup_needs_no_head_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "fetch", lambda name, **options: Path(name))
    choice = choose_head("somebody/model", "ngram", TARGET)
    assert (choice.folder, choice.has_lookup, choice.drafts) == (None, True, True)
    beside = choose_head("somebody/model", f"{DEMO / 'head'}+ngram", TARGET)
    assert (beside.folder, beside.has_lookup) == (DEMO / "head", True)
    assert beside.name == f"{DEMO / 'head'} + n-gram lookup"
    joined = choose_head("somebody/model", "+ngram", TARGET)
    assert (joined.folder, joined.name, joined.drafts) == (None, "n-gram lookup", True)
