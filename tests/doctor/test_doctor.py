"""The doctor against errors that were planted: it names each and restores the acceptance."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from cases import broad
from mlx_eagle.cli.doctor import command, verdict
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.doctor.alternatives import candidate_taps
from mlx_eagle.doctor.doctor import (
    PROMPTS,
    Diagnosis,
    Trial,
    diagnose_head,
    is_better,
    repair_head,
    search_facts,
)
from mlx_eagle.doctor.score import STEPS, Evidence, Score, record_evidence, score_head
from mlx_eagle.errors import CheckpointError
from mlx_eagle.heads.load import assemble, load_head, read_head_config
from mlx_eagle.loading import load
from mlx_eagle.target.load import load_target
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape

# The fact, the planted value, and what the trained head has.
# By default the tests below plant wrong taps, a wrong rope and wrong norms in other ways.
PLANTED: list[Any] = [
    broad("taps", [3, 5, 6], [2, 4, 5]),
    broad("taps", [1, 3, 4], [2, 4, 5]),
    broad("taps", [2, 5, 6], [2, 4, 5]),
    broad("rope_theta", 1e6, 10000.0),
    broad("rope_interleaved", True, False),
    broad("norm_before_residual", True, False),
    broad("norm_output", True, False),
]


def silent(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def loaded(fixtures: Path) -> tuple[Target, Any]:
    """The trained target with all of its boundaries tapped, and its tokenizer."""
    (network, *_), tokenizer = load_target(fixtures / "pydoc-llama", "float32")
    return Target(network, range(9)), tokenizer


@pytest.fixture(scope="module")
def target(loaded: tuple[Target, Any]) -> Target:
    return loaded[0]


@pytest.fixture(scope="module")
def evidence(loaded: tuple[Target, Any], is_quick: bool) -> list[Evidence]:
    target, tokenizer = loaded
    questions = [
        [{"role": "user", "content": prompt}] for prompt in PROMPTS[: 1 if is_quick else 4]
    ]
    ids = [
        tokenizer.apply_chat_template(question, add_generation_prompt=True)
        for question in questions
    ]
    return record_evidence(target, ids, 44 if is_quick else 96, silent)


@pytest.fixture(scope="module")
def truth(target: Target, evidence: list[Evidence], trained_head: Path) -> Score:
    return score_head(target, evidence, load_head(trained_head))


@pytest.fixture(scope="module")
def known_scores() -> dict[str, Score]:
    """What readings of the trained head scored in this module."""
    return {}


@pytest.fixture
def scored_once(known_scores: dict[str, Score], monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches end among the same readings of one head: each is scored once for all tests."""

    def score(target: Target, texts: Any, head: Any, rival: Score | None = None) -> Score:
        table = head.draft_to_target.tolist()
        name = json.dumps([head.config.to_dict(), table, [text.tokens for text in texts]])
        if name not in known_scores or len(texts) > 1:  # a rival decides how many are looked at
            known_scores[name] = score_head(target, texts, head, rival)
        return known_scores[name]

    monkeypatch.setattr("mlx_eagle.doctor.doctor.score_head", score)


@pytest.fixture
def few_readings(is_quick: bool, only_facts: Callable[..., None]) -> None:
    """By default a search tries the facts that are planted below; all, on a sound head."""
    if is_quick:
        only_facts("taps", "rope_theta", "draft_to_target")


def weights_of(folder: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(folder / "model.safetensors")))


@pytest.mark.usefixtures("scored_once")
@pytest.mark.parametrize(("fact", "wrong", "right"), PLANTED, ids=lambda v: str(v))
def test_planted_error_is_named_and_its_loss_restored(
    fact: str,
    wrong: Any,
    right: Any,
    target: Target,
    evidence: list[Evidence],
    truth: Score,
    trained_head: Path,
) -> None:
    config = read_head_config(trained_head) | {fact: wrong}
    found = search_facts(target, evidence, config, weights_of(trained_head), silent)
    assert found.before.dense_acceptance_length < 0.98 * truth.dense_acceptance_length
    assert [(change.fact, change.value) for change in found.changes] == [(fact, right)]
    assert found.after.acceptance_length >= 0.98 * truth.acceptance_length


@pytest.mark.usefixtures("scored_once", "few_readings")
@pytest.mark.parametrize(
    "planted",
    [
        {"rope_theta": 50.0, "taps": [3, 5, 6]},
        broad({"norm_before_residual": True, "taps": [3, 5, 6]}),
    ],
)
def test_two_planted_errors_are_found_one_after_the_other(
    planted: dict[str, Any],
    target: Target,
    evidence: list[Evidence],
    truth: Score,
    trained_head: Path,
) -> None:
    config = read_head_config(trained_head) | planted
    found = search_facts(target, evidence, config, weights_of(trained_head), silent)
    assert {change.fact for change in found.changes} == set(planted)
    assert found.after.acceptance_length == truth.acceptance_length


@pytest.mark.broad
@pytest.mark.usefixtures("scored_once", "few_readings")
def test_offsets_stored_as_ids_are_read_as_offsets(
    target: Target, evidence: list[Evidence], truth: Score, trained_head: Path
) -> None:
    weights = weights_of(trained_head)
    table = weights["draft_to_target"]
    doubled = weights | {"draft_to_target": table - mx.arange(table.size, dtype=mx.int32)}
    found = search_facts(target, evidence, read_head_config(trained_head), doubled, silent)
    assert [(c.fact, c.value) for c in found.changes] == [("draft_to_target", "offsets")]
    assert found.after.acceptance_length == truth.acceptance_length


@pytest.mark.usefixtures("scored_once")
def test_a_sound_head_is_left_as_it_is(
    target: Target, evidence: list[Evidence], trained_head: Path
) -> None:
    found = search_facts(
        target, evidence, read_head_config(trained_head), weights_of(trained_head), silent
    )
    assert found.changes == []
    assert found.before is found.after
    tried = {fact for fact, _, _ in found.trials}
    assert {"taps", "rope_interleaved", "norm_before_residual", "double_norm"} <= tried


def test_score_is_what_the_loop_gives(turning: Any) -> None:
    """The rounds of a chain over the same text are the rounds that the score walks through."""
    question = turning.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPTS[0]}], add_generation_prompt=True
    )
    # The score's first round begins where the prompt's last token, the target's, is not known yet.
    prompt = [*question, *turning.generate(question, max_tokens=1, speculate=False).tokens]
    text = record_evidence(turning.target, [prompt], 40, silent)
    options = {"ignore_eos": True, "tree": TreeShape.chain(STEPS), "max_tokens": 41}
    result = turning.generate(question, **options)
    assert [prompt[-1], *text[0].tokens[len(prompt) :]] == result.tokens
    found = score_head(turning.target, text, turning.head)
    rounds, start = [], 0
    for n_accepted in result.stats.n_accepted_per_round:
        if start < len(found.likelihoods):
            rounds.append(n_accepted + 1)
        start += n_accepted + 1
    assert found.acceptance_length == pytest.approx(np.mean(rounds))


def test_chance_is_no_reason_to_change_anything() -> None:
    rng = np.random.default_rng(1)
    old = rng.normal(size=400)

    def as_score(length: float, likelihoods: np.ndarray) -> Score:
        return Score(0.5, length, length, likelihoods)

    was = as_score(2.0, old)
    assert is_better(as_score(2.1, old + rng.normal(0.5, 1, 400)), was)
    assert not is_better(as_score(2.01, old + rng.normal(0.5, 1, 400)), was), "not worth it"
    assert not is_better(as_score(2.1, rng.permutation(old)), was), "chance"
    assert not is_better(as_score(2.1, old[:100] + 1), was), "given up on the way"
    assert not is_better(was, was)


def test_taps_to_try_are_readings_of_the_same_ids() -> None:
    config = {
        "taps": [3, 5, 6],
        "fuse_taps": True,
        "target": {"num_hidden_layers": 8},
        "doubts": {"taps": {"reason": "", "alternatives": [[1, 2, 3]]}},
    }
    assert candidate_taps(config) == [
        (1, 2, 3),
        (4, 6, 7),
        (2, 4, 5),
        (3, 4, 6),
    ]
    assert candidate_taps(config | {"fuse_taps": False}) == []


def test_treatment_is_written_with_its_reason(
    tmp_path: Path, trained_head: Path, target: Target, evidence: list[Evidence], truth: Score
) -> None:
    folder = tmp_path / "head"
    shutil.copytree(trained_head, folder)
    config = read_head_config(folder) | {"norm_output": True}
    config["doubts"] = {"norm_output": {"reason": "x", "alternatives": [False]}}
    (folder / "config.json").write_text(json.dumps(config))
    before = score_head(target, evidence, assemble(config, weights_of(folder)))
    found = Diagnosis([], [Trial("norm_output", False, truth)], before, truth, "d2t")
    repair_head(folder, found)
    after = read_head_config(folder)
    assert after["norm_output"] is False
    assert after["doubts"] == {}
    assert after["origins"]["norm_output"] == "measured by the doctor"
    assert after["calibration"]["before"] < after["calibration"]["acceptance_length"]
    assert load_head(folder).config.norm_output is False
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.fixture
def zeroed(tmp_path: Path, fixtures: Path) -> Path:
    """The published fixture head with a d2t of zeros, t2d present."""
    torch = pytest.importorskip("torch")
    folder = tmp_path / "zeroed"
    folder.mkdir()
    shutil.copy(fixtures / "pydoc-eagle3" / "config.json", folder)
    state = torch.load(fixtures / "pydoc-eagle3" / "pytorch_model.bin", weights_only=True)
    state["d2t"] = torch.zeros_like(state["d2t"])
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.torch
@pytest.mark.usefixtures("short_doctor")
def test_zeroed_d2t_is_rebuilt_from_t2d_and_named(
    zeroed: Path,
    fixtures: Path,
    trained_head: Path,
    tmp_path: Path,
    is_quick: bool,
    only_facts: Callable[..., None],
) -> None:
    written = convert_head(zeroed, fixtures / "pydoc-llama", tmp_path / "out", bits=None)
    assert written["source"]["draft_to_target"] == "t2d"
    assert mx.array_equal(
        load_head(tmp_path / "out").draft_to_target, load_head(trained_head).draft_to_target
    )
    if is_quick:
        only_facts()  # the head is measured as it is
    result = CliRunner().invoke(command, [str(zeroed), "--target", str(fixtures / "pydoc-llama")])
    assert result.exit_code == 0
    assert "draft ids: rebuilt from t2d, because d2t is not usable" in result.stdout


@pytest.mark.broad
@pytest.mark.usefixtures("short_doctor")
def test_command_names_the_error_and_mends_it(
    tmp_path: Path, trained_head: Path, fixtures: Path
) -> None:
    folder, target = tmp_path / "head", str(fixtures / "pydoc-llama")
    shutil.copytree(trained_head, folder)
    config = read_head_config(folder) | {"norm_before_residual": True}
    (folder / "config.json").write_text(json.dumps(config))
    result = CliRunner().invoke(command, [str(folder), "--target", target, "--fix"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert any(line.startswith("norm_before_residual") and "<- better" in line for line in lines)
    assert lines[-1].startswith("norm_before_residual no: 1.")
    assert lines[-1].endswith("(written)")
    assert load_head(folder).config.norm_before_residual is False
    engine = load(fixtures / "pydoc-llama", folder, dtype="float32", calibrate=False)
    question = [{"role": "user", "content": PROMPTS[0]}]
    answer = engine.generate(question, max_tokens=12, ignore_eos=True, tree=TreeShape.chain(3))
    assert answer.stats.acceptance_length > 1.5


@pytest.mark.parametrize(
    ("length", "told"),
    [(1.05, "no reading helps: 1.05 tokens per round"), (1.9, "nothing to change: 1.90 tokens")],
)
def test_a_head_that_no_reading_helps_is_told_from_one_that_needs_none(
    length: float, told: str
) -> None:
    score = Score(0.5, length, length, np.zeros(3))
    assert verdict(Diagnosis([], [], score, score, "d2t"), "").startswith(told)


def test_a_published_head_cannot_be_mended_in_place(fixtures: Path) -> None:
    head, target = str(fixtures / "pydoc-eagle3"), str(fixtures / "pydoc-llama")
    result = CliRunner().invoke(command, [head, "--target", target, "--fix"])
    assert result.exit_code == 2
    assert "--doctor" in result.stderr


def test_a_head_of_another_target_is_refused(
    tmp_path: Path, trained_head: Path, fixtures: Path
) -> None:
    folder = tmp_path / "head"
    shutil.copytree(trained_head, folder)
    config = read_head_config(folder)
    config["target"]["num_hidden_layers"] = 6
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="for a target of 6 layers, pydoc-llama has 8"):
        diagnose_head(folder, fixtures / "pydoc-llama", silent)
    config["target"] = None
    config["target_hidden_size"] = 128
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="does not fit its config"):
        diagnose_head(folder, fixtures / "pydoc-llama", silent)


@pytest.mark.usefixtures("scored_once", "few_readings")
def test_taps_far_off_are_followed_as_far_as_there_is_evidence(
    target: Target, evidence: list[Evidence], trained_head: Path
) -> None:
    few = [text._replace(taps={b: text.taps[b] for b in (2, 3, 4, 5, 6)}) for text in evidence]
    config = read_head_config(trained_head) | {"taps": [3, 5, 6]}
    found = search_facts(target, few, config, weights_of(trained_head), silent)
    assert [(c.fact, c.value) for c in found.changes] == [("taps", [2, 4, 5])]
