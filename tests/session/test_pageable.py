"""Which rows go to disk with each kind of drafter, and what is said where some do not."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cases import broad
from doubles import NoText
from mlx_eagle.calibration.planners import Planners
from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.heads.draft_model import DraftModel
from mlx_eagle.heads.ngram import JoinedHead, sources_of
from mlx_eagle.loading import load
from mlx_eagle.session import prefix_files
from mlx_eagle.session.prefix import CachedPrefix
from mlx_eagle.speculation import ON
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape
from served import close_files
from tiny_models import build_target

BLOCK = 16
IDS = [(5 * i * i + 3 * i) % 128 for i in range(100)]
FAMILIES = json.loads((Path(__file__).parents[1] / "data" / "families.json").read_text())
INFO = EngineInfo("tiny", "", "tiny", "", ON, "", False)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are small, and the folder is the test's own."""
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(prefix_files, "BLOCK", BLOCK)
    monkeypatch.setattr(prefix_files, "LEAST_BLOCKS", 2)


def engine_of(target: str, draft_model: str, *, has_lookup: bool = False) -> Engine:
    """An engine for which a small model drafts."""
    networks = [
        build_target(kind, **FAMILIES["recurrent"].get(kind, {})) for kind in (target, draft_model)
    ]
    model = DraftModel(networks[1])
    head = JoinedHead(model) if has_lookup else model
    verifier = Target(networks[0])
    planners = Planners(chains_only=verifier.chains_only, sources=sources_of(head))
    return Engine(verifier, NoText(), head, INFO, planners)


@pytest.fixture(params=[broad(False), True], ids=["alone", "beside lookup"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    made = engine_of("llama", "llama", has_lookup=request.param)
    yield made
    if made.prefix_cache is not None:
        close_files(made)


def test_rows_of_a_draft_model_are_found_by_another_run(engine: Engine) -> None:
    options = {"max_tokens": 8, "tree": TreeShape(3, 2, 5), "ignore_eos": True}
    assert CachedPrefix(engine).why_not_pageable == ""
    want = engine.generate(IDS, **options)
    engine.keep_prefixes(0, 1 << 30)
    engine.generate(IDS, **options)
    close_files(engine)
    engine.keep_prefixes(0, 1 << 30)
    again = engine.generate(IDS, **options)
    assert again.tokens == want.tokens
    assert 5 * BLOCK <= again.stats.cached_tokens < 6 * BLOCK
    assert again.stats.n_accepted_per_round == want.stats.n_accepted_per_round


@pytest.mark.parametrize(
    ("draft_model", "target", "message"),
    [
        broad("lfm2", "llama", "no rows are kept on disk: the draft model has layers without"),
        ("llama", "lfm2", "no rows are kept on disk: the target has layers without"),
        ("gemma3_text", "llama", "texts beyond 328 tokens .*: the draft model holds no more"),
        broad("llama", "gemma3_text", "texts beyond 328 tokens .*: the target holds no more"),
    ],
)
def test_what_is_not_kept_on_disk_is_said(draft_model: str, target: str, message: str) -> None:
    engine = engine_of(target, draft_model)
    engine.keep_prefixes(0, 1 << 30)
    engine.generate(IDS, max_tokens=2, tree=TreeShape.chain(2))
    close_files(engine)
    assert re.search(message, CachedPrefix(engine).why_not_pageable)


def test_it_is_said_when_a_head_is_loaded(turning_folders: tuple[Path, Path]) -> None:
    target, head = turning_folders
    for name, window, expected in (
        (f"draft:{target}", None, []),
        (head, 64, ["no rows of texts beyond 64 tokens are kept on disk: the head holds no more"]),
    ):
        said: list[str] = []
        options = {"calibrate": False, "cache_disk": 1 << 30, "head_window": window}
        close_files(load(target, name, notify=said.append, **options))
        assert said == [f"{target}: {line}" for line in expected]
