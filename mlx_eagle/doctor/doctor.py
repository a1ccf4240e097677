"""The doctor: finds the facts of a head by measuring it: taps, rope, norms, draft vocabulary.

A head that is run with a wrong fact about its training drafts badly, and nothing fails. So every
plausible value of every fact (`alternatives.py`) is tried on texts that the target wrote, scored by
how the head would have drafted them (`score.py`), and the best value is kept, one fact after the
other, until no change helps. No weights are changed but the table of draft ids.
"""

import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.convert.checkpoint import read_weights
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.mtp.norms import FACT
from mlx_eagle.convert.target_facts import TargetFacts, read_target_facts
from mlx_eagle.doctor.alternatives import (
    ALSO,
    Weights,
    boundaries_to_tap,
    plausible_values,
    with_fact,
)
from mlx_eagle.doctor.score import (
    CLEARLY,
    Evidence,
    Progress,
    Score,
    record_evidence,
    score_head,
    z_score,
)
from mlx_eagle.drafters.make import check_fit
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.json_files import read_json
from mlx_eagle.heads.config import MODEL_TYPE
from mlx_eagle.heads.load import Head, assemble, load_head, read_head_config
from mlx_eagle.session.prompt import encode_chat_or_text
from mlx_eagle.target.load import load_target
from mlx_eagle.target.target import Target

N_TOKENS = 96  # that the target writes after each prompt
MIN_GAIN = 0.01  # of the dense acceptance length, below which a change is not worth making
MAX_CHANGES = 5
IN_TENSORS = {"draft_to_target", FACT}  # facts that change numbers of the head

PROMPTS = (
    "What does os.path.join do?",
    "Write a Python function that returns the n-th Fibonacci number, and explain it.",
    "Explain the difference between a process and a thread to a beginner.",
    "List five things to check before publishing a package.",
)


class Trial(NamedTuple):
    """One fact set to one value, everything else as it was; `fact` is "" for the head as it is."""

    fact: str
    value: Any
    score: Score


class Diagnosis(NamedTuple):
    """What the measurements say.

    Attributes:
        trials: the head as it is, then every change that was tried first.
        changes: the facts to change, in the order of their effect.
        before: the score of the head as it is.
        after: the score with all changes.
        draft_ids: where the table of draft ids comes from, as the conversion notes it.
        without_adapter: the score of the head as it is on the base model, where an adapter is
            measured.
    """

    trials: list[Trial]
    changes: list[Trial]
    before: Score
    after: Score
    draft_ids: str
    without_adapter: Score | None = None


def diagnose_head(
    head: Path, target: Path, progress: Progress, adapter: Path | None = None
) -> Diagnosis:
    """Measure a head, converted or as published, on its target.

    Args:
        head: folder of the head.
        target: folder of the target, weights included.
        progress: called with (what is done, done, in all).
        adapter: a LoRA adapter that the target gets; the head is measured without it too.

    Raises:
        EagleError: if one of them cannot be loaded, or they do not belong together.
    """
    with tempfile.TemporaryDirectory() as scratch:
        if not is_converted(head):
            convert_head(head, target, Path(scratch) / "head", bits=None)
            head = Path(scratch) / "head"
        config = _checked(read_head_config(head), read_target_facts(target))
        weights = read_weights(head / "model.safetensors")
        network = load_head(head)
        mx.eval(weights, network.parameters())
    base = None
    if adapter is not None:
        base = score_head(*_texts_of(target, None, network, config, progress), network)
    tapped, evidence = _texts_of(target, adapter, network, config, progress)
    found = search_facts(tapped, evidence, config, weights, progress)
    return found._replace(without_adapter=base)


def _texts_of(
    folder: Path, adapter: Path | None, head: Head, config: dict[str, Any], progress: Progress
) -> tuple[Target, list[Evidence]]:
    """Return a target that the head fits, perhaps with an adapter, and texts that it writes."""
    loaded, tokenizer = load_target(folder, adapter=adapter)
    tapped = Target(loaded.network, boundaries_to_tap(config))
    check_fit(head, tapped)
    return tapped, write_texts(tapped, tokenizer, progress)


def write_texts(target: Target, tokenizer: Any, progress: Progress) -> list[Evidence]:
    """Return texts that a tapped target writes, by which heads are measured."""
    prompts = [_encode(tokenizer, prompt) for prompt in PROMPTS]
    return record_evidence(target, prompts, N_TOKENS, progress)


def repair_head(folder: Path, diagnosis: Diagnosis) -> None:
    """Write what a diagnosis would change into a converted head; each file is replaced whole."""
    config = read_head_config(folder)
    weights = read_weights(folder / "model.safetensors")
    for change in diagnosis.changes:
        config, weights = with_fact(config, weights, change.fact, change.value)
        measured = dict.fromkeys(change.fact.split(ALSO), "measured by the doctor")
        config["origins"] = config.get("origins", {}) | measured
    # What was measured is no longer in doubt, whether it was changed or not.
    config["doubts"] = {}
    config["calibration"] = {
        "acceptance_length": round(diagnosis.after.acceptance_length, 3),
        "before": round(diagnosis.before.acceptance_length, 3),
        "positions": len(diagnosis.after.likelihoods),
    }
    text = json.dumps(config, indent=2, allow_nan=False) + "\n"
    with ExitStack() as both:  # both are on the disk before the first one is replaced
        both.enter_context(new_file(folder / "config.json")).write_text(text, encoding="utf-8")
        changed = {fact for change in diagnosis.changes for fact in change.fact.split(ALSO)}
        if changed & IN_TENSORS:
            partial = both.enter_context(new_file(folder / "model.safetensors"))
            mx.save_safetensors(str(partial), weights, metadata={"format": "mlx"})


def _checked(config: dict[str, Any], target: TargetFacts) -> dict[str, Any]:
    """Return a converted head's configuration with facts of the target that it is measured on.

    Raises:
        CheckpointError: if the head was converted for a target of another depth.
    """
    made_for = config.get("target")
    n_layers = made_for.get("num_hidden_layers") if isinstance(made_for, dict) else None
    if n_layers not in (None, target.num_hidden_layers):
        raise CheckpointError(
            f"the head was converted for a target of {n_layers} layers, {target.name} has "
            f"{target.num_hidden_layers}; convert it for this target"
        )
    written = config.get("doubts")
    doubts = {
        name: doubt
        for name, doubt in (written if isinstance(written, dict) else {}).items()
        if isinstance(doubt, dict) and isinstance(doubt.get("alternatives"), list)
    }
    return config | {"target": target._asdict(), "doubts": doubts}


def _encode(tokenizer: Any, question: str) -> list[int]:
    """Return the token ids of a question, as the target is asked one in a chat if it can be."""
    return encode_chat_or_text(tokenizer, [{"role": "user", "content": question}], question)


def is_converted(folder: Path) -> bool:
    """Say whether a folder holds a head that was converted."""
    config = read_json(folder / "config.json")
    return config.get("model_type") == MODEL_TYPE


def search_facts(
    target: Target,
    evidence: Sequence[Evidence],
    config: dict[str, Any],
    weights: Weights,
    progress: Progress,
) -> Diagnosis:
    """Try every plausible value of every fact; keep the best one, until no change helps.

    Args:
        target: its embedding and output layer are used where the head borrows them.
        evidence: what `record_evidence` returned, with all boundaries of `candidate_taps`.
        config: the configuration of the converted head.
        weights: its tensors.
        progress: called with ("measure", done, in all).
    """
    before = score_head(target, evidence, assemble(config, weights))
    trials, best = [Trial("", None, before)], before
    changes: list[Trial] = []
    while len(changes) < MAX_CHANGES:
        tried = _try_values(target, evidence, (config, weights), best, progress)
        if len(trials) == 1:
            trials += tried
        better = [trial for trial in tried if is_better(trial.score, best)]
        if not better:
            break
        winner = max(better, key=lambda trial: trial.score.dense_acceptance_length)
        config, weights = with_fact(config, weights, winner.fact, winner.value)
        changes.append(winner)
        best = winner.score
    return Diagnosis(trials, changes, before, best, _draft_ids(config))


def _try_values(
    target: Target,
    evidence: Sequence[Evidence],
    head: tuple[dict[str, Any], Weights],
    best: Score,
    progress: Progress,
) -> list[Trial]:
    """Score a head, its configuration and tensors, with each single fact changed."""
    recorded, tried = set(evidence[0].taps), []
    options = [o for o in plausible_values(*head) if o[0] != "taps" or recorded >= set(o[1])]
    for done, (fact, value) in enumerate(options):
        progress("measure", done, len(options))
        changed = assemble(*with_fact(*head, fact, value))
        tried.append(Trial(fact, value, score_head(target, evidence, changed, best)))
    progress("measure", len(options), len(options))
    return tried


def _draft_ids(config: dict[str, Any]) -> str:
    """Return how the conversion found the draft vocabulary."""
    source = config.get("source")
    return str(source.get("draft_to_target", "")) if isinstance(source, dict) else ""


def is_better(new: Score, old: Score) -> bool:
    """Say whether a gain is worth having and too large to be chance."""
    if len(new.likelihoods) < len(old.likelihoods):
        return False  # it was given up on the way
    enough = new.dense_acceptance_length > old.dense_acceptance_length * (1 + MIN_GAIN)
    return enough and z_score(new.likelihoods, old.likelihoods) > CLEARLY
