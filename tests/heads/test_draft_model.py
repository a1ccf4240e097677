"""A draft model is any mlx-lm model with the target's tokens, read and refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

import mlx_eagle
from command_line import run_here
from doubles import Letters, make_drafted_engine
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.draft_model import DraftModel, check_same_tokens, load_draft_model
from mlx_eagle.hub import head_choice
from mlx_eagle.hub.fit import foresee
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.loading import load_with_head
from mlx_eagle.session.limits import bytes_per_row
from mlx_eagle.static_tree import MeasuredTree, StaticTree
from mlx_eagle.tree_shape import TreeShape
from turning_pair import swap_words

PROMPT = "def read(path):"


@pytest.fixture(scope="module")
def itself(turning_target: Path) -> str:
    """The best draft model of a target that there is, if not a quick one."""
    return f"draft:{turning_target}"


@pytest.fixture(scope="module")
def drafted(turning_target: Path, itself: str) -> Any:
    """A small target, which drafts for itself."""
    return mlx_eagle.load(turning_target, itself, calibrate=False)


def test_a_token_that_differs_is_named() -> None:
    words = {"a": 0, "b": 1, "c": 2}
    check_same_tokens(dict(words), dict(words))
    with pytest.raises(EagleError, match=r"other tokens .* id 1 is 'x' there and 'b' here"):
        check_same_tokens({"a": 0, "x": 1, "c": 2}, words)
    with pytest.raises(EagleError, match=r"id 2 is none there and 'c' here"):
        check_same_tokens({"a": 0, "b": 1}, words)
    with pytest.raises(EagleError, match=r"id 3 is 'd' there and none here"):
        check_same_tokens(words | {"d": 3}, words)


def test_as_many_tokens_are_not_enough(drafted: Any, turning_target: Path, tmp_path: Path) -> None:
    """Two ids have changed places: the sizes are equal, and every draft would be nonsense."""
    other = swap_words(turning_target, tmp_path / "other")
    with pytest.raises(EagleError, match="other tokens than the target: id 300 is"):
        load_draft_model(other, drafted.tokenizer)


def test_a_draft_model_that_cannot_be_had_is_refused(
    turning_target: Path, itself: str, tmp_path: Path
) -> None:
    with pytest.raises(EagleError, match="there is no folder"):
        mlx_eagle.load(turning_target, f"draft:{tmp_path}/nowhere", calibrate=False)
    with pytest.raises(EagleError, match="draft model attends to all tokens"):
        mlx_eagle.load(turning_target, itself, calibrate=False, head_window=64)


def test_a_draft_model_is_named_as_targets_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders, hub repositories, GGUF files and packaged models all go through `fetch`."""
    asked: list[str] = []
    target = DEMO / "target"

    def fetch(name: str, **_: Any) -> Path:
        asked.append(name)
        return target

    monkeypatch.setattr(head_choice, "fetch", fetch)
    for name in ("owner/model", "small.gguf", "ollama:small"):
        choice = head_choice.choose_head(target, f"draft:{name}", target)
        assert (choice.folder, choice.name, choice.is_named) == (target, f"draft:{name}", True)
        assert choice.is_draft_model
    assert asked == ["owner/model", "small.gguf", "ollama:small"]
    assert head_choice.choose_head(target, "draft:demo", target).folder == target
    beside = head_choice.choose_head(target, "draft:owner/model+ngram", target)
    assert (asked[-1], beside.is_draft_model, beside.has_lookup) == ("owner/model", True, True)
    assert beside.name == "draft:owner/model + n-gram lookup"


def test_the_text_is_that_of_plain_decoding_and_nearly_all_is_accepted(
    drafted: Any, itself: str
) -> None:
    for options in ({}, {"temperature": 0.8, "seed": 3}):
        want = drafted.generate(PROMPT, max_tokens=8, speculate=False, **options)
        found = drafted.generate(PROMPT, max_tokens=8, tree=TreeShape.chain(3), **options)
        assert found.tokens == want.tokens
        if not options:
            assert found.stats.acceptance_length > 3
    assert drafted.info.head == itself
    assert drafted.info.head_precision == drafted.info.target_precision
    assert drafted.info.remedy == "", "there is nothing that a doctor could find"


def test_its_cache_counts_in_every_figure_of_memory(
    drafted: Any, turning_target: Path, itself: str
) -> None:
    own = bytes_per_row(drafted.target)
    assert drafted.limits.bytes_per_row == (*own, *own)
    session = drafted.session()
    list(session.ask("hello", max_tokens=2))
    assert session.prefix.nbytes == 2 * session.prefix.cache.nbytes
    alone, both = foresee(turning_target, "none"), foresee(turning_target, itself)
    assert (both.cache, both.head) == (2 * alone.cache, alone.weights)
    assert foresee(turning_target, f"{itself}+ngram") == both


def test_a_draft_model_may_come_to_a_target_that_is_in_use(turning: Any, itself: str) -> None:
    engine = load_with_head(turning, None, itself, calibrate=False)
    assert isinstance(engine.head, DraftModel)
    assert engine.target.model is turning.target.model
    assert len(engine.limits.bytes_per_row) == 2 * len(bytes_per_row(turning.target))
    options = {"max_tokens": 4, "tree": TreeShape(2, 2, 4)}
    assert engine.generate(PROMPT, **options).tokens == turning.generate(PROMPT, **options).tokens


def test_it_drafts_for_as_long_a_text_as_it_was_made_for(
    turning: Any, turning_target: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(turning_target, tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 24}))
    said: list[str] = []
    engine = load_with_head(turning, None, f"draft:{folder}", calibrate=False, notify=said.append)
    (remark,) = engine.info.head_remarks
    assert said == [f"{turning.info.target}: {remark}"]
    assert remark == f"draft:{folder}: drafts for the first 24 tokens of a text, as it was made for"
    ids = turning.tokenizer.encode(PROMPT)
    options = {"max_tokens": 32, "ignore_eos": True, "tree": TreeShape.chain(4)}
    found = engine.generate(ids, **options)
    assert found.tokens == turning.generate(ids, **options | {"speculate": False}).tokens
    stats, n_within = found.stats, 24 - len(ids)
    assert 0 < stats.accepted <= n_within and stats.rounds >= 32 - n_within


def test_lookup_stands_beside_it(
    drafted: Any, turning: Any, itself: str, tmp_path: Path, is_quick: bool
) -> None:
    engine = load_with_head(turning, None, f"{itself}+ngram", calibrate=False)
    assert engine.limits.bytes_per_row == drafted.limits.bytes_per_row
    assert engine.info.remedy == ""
    words = drafted.generate(PROMPT, max_tokens=2, speculate=False).tokens
    bias = dict.fromkeys(words, 100.0)  # two words to answer with: what was said comes again
    options: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "logit_bias": bias}
    found = engine.generate(PROMPT, tree=TreeShape(2, 2, 4), **options)
    assert found.tokens == drafted.generate(PROMPT, speculate=False, **options).tokens
    # The toy pair's target, which is taken where more is asked for, foresees all of its own text.
    assert set(found.stats.by_source) == ({"head", "n-gram"} if is_quick else {"head"})
    with pytest.raises(EagleError, match="draft model attends to all tokens"):
        load_with_head(turning, None, f"{itself}+ngram", calibrate=False, head_window=64)
    engine.session().save(tmp_path / "saved")
    with pytest.raises(EagleError, match="another head"):
        drafted.load_session(tmp_path / "saved")


def test_beside_lookup_what_is_drawn_and_what_has_a_fixed_structure_is_refused(
    tiny_target: Any,
) -> None:
    models = tiny_target("llama"), tiny_target("llama")
    engine = make_drafted_engine(*models, Letters(), has_lookup=True)
    with pytest.raises(EagleError, match=r"chosen, not drawn: give a draft model alone"):
        engine.generate([5, 9], temperature=1.0, acceptance="ratio")
    for tree in (StaticTree.published("mc_sim_7b_63"), MeasuredTree(6)):
        with pytest.raises(EagleError, match="fixed structure, which neither lookup nor"):
            engine.generate([5, 9], tree=tree)
    drawn = engine.generate([5, 9], temperature=1.0, acceptance="typical", max_tokens=6)
    assert drawn.stats.acceptance_rule == "typical"


def test_a_conversation_of_another_drafter_is_refused_by_name(
    drafted: Any, turning: Any, tmp_path: Path
) -> None:
    session = drafted.session()
    list(session.ask("hello", max_tokens=3))
    session.save(tmp_path / "saved")
    again = drafted.load_session(tmp_path / "saved")
    assert again.prefix.drafter.rows == session.prefix.drafter.rows > 0
    with pytest.raises(EagleError, match=r"another head \(draft model \w{12}, this one is"):
        turning.load_session(tmp_path / "saved")


def test_the_command_line_takes_it(turning_target: Path, itself: str) -> None:
    command = ("generate", PROMPT, "--model", str(turning_target), "--head", itself, "--tree", "3")
    done = run_here(*command, "--max-tokens", "4", "--json", "--no-calibrate")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["accepted"] > 0


def test_ids_that_only_pad_the_targets_vocabulary_can_be_read(tiny_target: Any) -> None:
    draft = DraftModel(tiny_target("llama", vocab_size=100))
    assert draft.vocab_size == 100
    logits = draft(mx.array([99, 127, 500]), draft.make_cache())
    assert mx.isfinite(logits).all()
