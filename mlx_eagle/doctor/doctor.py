"""Finds out by measuring how a head wants to be run: taps, rope, norms, draft vocabulary.

A head that is run with a wrong fact about its training drafts, only badly, and nothing fails. So
every plausible value of every doubtful fact is tried on a text that the target wrote, and what
makes the head foresee the target better is kept, one fact after the other. How a head is measured
is in `score.py`. No weights are changed.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_eagle.convert.checkpoint import read_weights
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.taps import plausible_taps
from mlx_eagle.convert.target_facts import TargetFacts, read_target_facts
from mlx_eagle.doctor.score import CLEARLY, Evidence, Progress, Score, collect, score, z_score
from mlx_eagle.drafters.make import check_fit
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import read_json
from mlx_eagle.heads.config import MODEL_TYPE
from mlx_eagle.heads.load import assemble, load_head, read_head_config
from mlx_eagle.target.load import load_target
from mlx_eagle.target.target import Target

N_TOKENS = 96  # that the target writes after each prompt
MIN_GAIN = 0.01  # of the dense acceptance length, below which a change is not worth making
MAX_CHANGES = 5

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
    """

    trials: list[Trial]
    changes: list[Trial]
    before: Score
    after: Score
    draft_ids: str


def diagnose_head(head: Path, target: Path, progress: Progress) -> Diagnosis:
    """Measure a head, converted or as published, on its target.

    Args:
        head: folder of the head.
        target: folder of the target, weights included.
        progress: called with (what is done, done, in all).

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
    model, tokenizer = load_target(target)
    tapped = Target(model, _boundaries(config))
    check_fit(network, tapped)
    prompts = [_encode(tokenizer, prompt) for prompt in PROMPTS]
    evidence = collect(tapped, prompts, N_TOKENS, progress)
    return diagnose(tapped, evidence, config, weights, progress)


def repair_head(folder: Path, diagnosis: Diagnosis) -> None:
    """Write what a diagnosis would change into a converted head; each file is replaced whole."""
    config = read_head_config(folder)
    weights = read_weights(folder / "model.safetensors")
    for change in diagnosis.changes:
        config, weights = apply(config, weights, change.fact, change.value)
        config.setdefault("origins", {})[change.fact] = "measured by the doctor"
    # What was measured is no longer in doubt, whether it was changed or not.
    config["doubts"] = {}
    config["calibration"] = {
        "acceptance_length": round(diagnosis.after.acceptance_length, 3),
        "before": round(diagnosis.before.acceptance_length, 3),
        "positions": len(diagnosis.after.likelihoods),
    }
    if any(change.fact == "draft_to_target" for change in diagnosis.changes):
        partial = folder / ".partial.safetensors"
        mx.save_safetensors(str(partial), weights, metadata={"format": "mlx"})
        os.replace(partial, folder / "model.safetensors")
    partial = folder / ".partial.json"
    partial.write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, folder / "config.json")


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
    if not tokenizer.has_chat_template:
        return list(tokenizer.encode(question))
    messages = [{"role": "user", "content": question}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True))


def is_converted(folder: Path) -> bool:
    """Say whether a folder holds a head that was converted."""
    config = read_json(folder / "config.json")
    return config.get("model_type") == MODEL_TYPE


def _boundaries(config: dict[str, Any]) -> list[int]:
    """Return every boundary that a calibration may come to read: two changes of the taps."""
    if config["algorithm"] == "medusa" or not config["fuse_taps"]:
        return list(config["taps"])
    found = [tuple(config["taps"]), *candidate_taps(config)]
    found += [taps for first in found[1:] for taps in candidate_taps(config | {"taps": first})]
    return sorted({boundary for taps in found for boundary in taps})


def diagnose(
    target: Target,
    evidence: Sequence[Evidence],
    config: dict[str, Any],
    weights: dict[str, mx.array],
    progress: Progress,
) -> Diagnosis:
    """Try every plausible value of every doubtful fact; keep what helps, until nothing does.

    Args:
        target: its embedding and output layer are used where the head borrows them.
        evidence: what `collect` recorded, with all boundaries of `candidate_taps`.
        config: the configuration of the converted head.
        weights: its tensors.
        progress: called with ("measure", done, in all).
    """
    before = score(target, evidence, assemble(config, weights))
    trials, best = [Trial("", None, before)], before
    changes: list[Trial] = []
    while len(changes) < MAX_CHANGES:
        tried = []
        known = set(evidence[0].taps)
        options = [o for o in alternatives(config, weights) if o[0] != "taps" or known >= set(o[1])]
        for done, (fact, value) in enumerate(options):
            progress("measure", done, len(options))
            head = assemble(*apply(config, weights, fact, value))
            tried.append(Trial(fact, value, score(target, evidence, head, best)))
        progress("measure", len(options), len(options))
        if len(trials) == 1:
            trials += tried
        better = [trial for trial in tried if is_better(trial.score, best)]
        if not better:
            break
        winner = max(better, key=lambda trial: trial.score.dense_acceptance_length)
        config, weights = apply(config, weights, winner.fact, winner.value)
        changes.append(winner)
        best = winner.score
    return Diagnosis(trials, changes, before, best, _draft_ids(config))


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


def alternatives(config: dict[str, Any], weights: dict[str, mx.array]) -> list[tuple[str, Any]]:
    """Return (fact, value) for everything that is plausible and not what the head has."""
    if config["algorithm"] == "medusa":
        return []
    doubts = config.get("doubts") or {}
    found: list[tuple[str, Any]] = [("taps", list(taps)) for taps in candidate_taps(config)]
    theirs = (config.get("target") or {}).get("rope_theta")
    known = [*doubts.get("rope_theta", {}).get("alternatives", []), 10000.0, theirs]
    found += [("rope_theta", theta) for theta in dict.fromkeys(known) if theta]
    found += [("rope_scaling", None)]
    found += [("rope_scaling", s) for s in doubts.get("rope_scaling", {}).get("alternatives", [])]
    flags = ["rope_interleaved"]
    if config["algorithm"] != "eagle":
        flags += ["norm_output"]
        flags += ["norm_before_residual"] if config["hidden_norm"] else []
        flags += ["double_norm"] if config["hidden_norm"] and config["input_layernorm"] else []
        flags += ["final_norm"] if "final_norm" in doubts and "norm.weight" in weights else []
    found += [(flag, not config[flag]) for flag in flags]
    found += [("draft_to_target", name) for name in _other_readings(config, weights)]
    return [(fact, value) for fact, value in found if config.get(fact) != value]


def candidate_taps(config: dict[str, Any]) -> list[tuple[int, ...]]:
    """Return the taps to try besides the head's own; none for heads without `fc` over taps."""
    n_layers = config["target"]["num_hidden_layers"]
    if not config.get("fuse_taps"):
        return []
    doubted = (config.get("doubts") or {}).get("taps", {}).get("alternatives", [])
    found = [*(tuple(t) for t in doubted), *plausible_taps(tuple(config["taps"]), n_layers)]
    return list(dict.fromkeys(found))


def apply(
    config: dict[str, Any], weights: dict[str, mx.array], fact: str, value: Any
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """Return configuration and weights with one fact changed."""
    if fact == "draft_to_target":
        table = _other_readings(config, weights)[value]
        return config, weights | {"draft_to_target": table}
    return config | {fact: value}, weights


def _other_readings(config: dict[str, Any], weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return other meanings of the table of draft ids, of those that name each token once."""
    table, n_tokens = weights["draft_to_target"], config["target_vocab_size"]
    if table.size == n_tokens:
        return {}
    index = mx.arange(table.size, dtype=mx.int32)
    readings = {"offsets": table + index, "ids counted twice": table - index}
    return {
        name: ids
        for name, ids in readings.items()
        if ids.min() >= 0 and ids.max() < n_tokens and len(np.unique(np.array(ids))) == ids.size
    }
