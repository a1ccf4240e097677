"""What a head may be instead of what its configuration says: every plausible value of each fact.

The doctor tries them; a converter's doubts name some, the rest are the mistakes that published
files are known for.
"""

from itertools import combinations, product
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_eagle.convert.dialects import BLOCKS
from mlx_eagle.convert.mtp.layouts import is_norm
from mlx_eagle.convert.mtp.norms import FACT
from mlx_eagle.convert.taps import plausible_taps

Weights = dict[str, mx.array]
ALSO = " + "  # between the names of facts that are changed together


def boundaries_to_tap(config: dict[str, Any]) -> list[int]:
    """Return every boundary that the search may come to read: two changes of the taps."""
    if config["algorithm"] == "mtp":
        n_layers = config["target"]["num_hidden_layers"]
        return [n_layers, n_layers + 1]
    if config["algorithm"] == "medusa" or not config["fuse_taps"]:
        return list(config["taps"])
    found = [tuple(config["taps"]), *candidate_taps(config)]
    found += [taps for first in found[1:] for taps in candidate_taps(config | {"taps": first})]
    return sorted({boundary for taps in found for boundary in taps})


def plausible_values(config: dict[str, Any], weights: Weights) -> list[tuple[str, Any]]:
    """Return (fact, value) for everything that is plausible and not what the head has."""
    if config["algorithm"] == "medusa":
        return []
    if config["algorithm"] == "mtp":
        return _mtp_grid(config, weights)
    doubts = config.get("doubts") or {}
    found: list[tuple[str, Any]] = [("taps", list(taps)) for taps in candidate_taps(config)]
    theirs = (config.get("target") or {}).get("rope_theta")
    known = [*doubts.get("rope_theta", {}).get("alternatives", []), 10000.0, theirs]
    found += [("rope_theta", theta) for theta in dict.fromkeys(known) if theta]
    found += [("rope_scaling", None)]
    found += [("rope_scaling", s) for s in doubts.get("rope_scaling", {}).get("alternatives", [])]
    flags = ["rope_interleaved"]
    if config["algorithm"] in BLOCKS:
        flags += ["root_predicts"]
        n_layers = config["num_hidden_layers"]
        found += [("causal_layers", [is_causal] * n_layers) for is_causal in (False, True)]
    elif config["algorithm"] != "eagle":
        flags += ["norm_output"]
        flags += ["norm_before_residual"] if config["hidden_norm"] else []
        flags += ["double_norm"] if config["hidden_norm"] and config["input_layernorm"] else []
        flags += ["final_norm"] if "final_norm" in doubts and "norm.weight" in weights else []
    found += [(flag, not config[flag]) for flag in flags]
    found += [("draft_to_target", name) for name in _other_readings(config, weights)]
    return [(fact, value) for fact, value in found if config.get(fact) != value]


def _mtp_grid(config: dict[str, Any], weights: Weights) -> list[tuple[str, Any]]:
    """Return every reading of a multi-token prediction layer, those that differ most last.

    A layer that is read wrongly in one way accepts nothing, whatever else is tried alone. So all
    are tried together: the state before or after the target's final norm, fed back before or after
    its own, gains of norms with or without 1 added, and the order of the two inputs.
    """
    n_layers = config["target"]["num_hidden_layers"]
    axes: dict[str, list[Any]] = {
        "taps": [[n_layers], [n_layers + 1]],
        "norm_output": [True, False],
        FACT: _other_sums(config, weights),
        "hidden_first": [False, True],
    }
    others = {fact: [v for v in values if v != config[fact]] for fact, values in axes.items()}
    found: list[tuple[str, Any]] = []
    for n in range(1, len(others) + 1):
        for facts in combinations(others, n):
            for values in product(*(others[fact] for fact in facts)):
                reading = dict(zip(facts, values, strict=True))
                found.append((ALSO.join(facts), reading if n > 1 else values[0]))
    return found


def _other_sums(config: dict[str, Any], weights: Weights) -> list[list[str]]:
    """Return to which norms 1 may have to be added: to none, to all, and what is in doubt."""
    every = sorted(name for name in weights if is_norm(name))
    doubted = (config.get("doubts") or {}).get(FACT, {}).get("alternatives", [])
    return [[], every, *(d for d in doubted if d not in ([], every))]


def candidate_taps(config: dict[str, Any]) -> list[tuple[int, ...]]:
    """Return the taps to try besides the head's own; none for heads without `fc` over taps."""
    n_layers = config["target"]["num_hidden_layers"]
    if not config.get("fuse_taps"):
        return []
    doubted = (config.get("doubts") or {}).get("taps", {}).get("alternatives", [])
    found = [*(tuple(t) for t in doubted), *plausible_taps(tuple(config["taps"]), n_layers)]
    return list(dict.fromkeys(found))


def with_fact(
    config: dict[str, Any], weights: Weights, fact: str, value: Any
) -> tuple[dict[str, Any], Weights]:
    """Return the configuration and the tensors of a head with one fact changed."""
    if fact == "draft_to_target":
        table = _other_readings(config, weights)[value]
        return config, weights | {"draft_to_target": table}
    if ALSO in fact:
        for part, own in value.items():
            config, weights = with_fact(config, weights, part, own)
        return config, weights
    if fact == FACT:
        before, after = set(config[FACT]), set(value)
        changes = dict.fromkeys(after - before, 1) | dict.fromkeys(before - after, -1)
        weights = weights | {name: weights[name] + change for name, change in changes.items()}
    return config | {fact: value}, weights


def _other_readings(config: dict[str, Any], weights: Weights) -> Weights:
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
