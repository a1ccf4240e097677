"""A run's results as one JSON-ready object, which `report_markdown.py` and `plots.py` show."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from mlx_eagle.bench.machine import describe_machine
from mlx_eagle.bench.measure import Trial
from mlx_eagle.bench.metrics import Alphas, Sample, slowest, summarise
from mlx_eagle.bench.papers import rows_by_category, rows_by_set
from mlx_eagle.bench.prompts import BenchPrompt
from mlx_eagle.bench.text_comparison import Comparison
from mlx_eagle.engine import EngineInfo

Report = dict[str, Any]
MODEL_KEYS = ("target", "target_precision", "head", "head_precision", "speculation")


class Inputs(NamedTuple):
    """What a run was given.

    Attributes:
        command: the command line.
        info: what is loaded.
        source: where the prompts come from.
        prompts: the prompts themselves.
        contestants: their names, plain decoding's first.
        trial: how it was measured.
        left_out: questions by data set that do not fit into the target's context.
        starts: when a run that is kept was begun, and taken up again.
        heads: by contestant, the head that it drafts with, as `Alphas` names it.
    """

    command: str
    info: EngineInfo
    source: str
    prompts: Sequence[BenchPrompt]
    contestants: Sequence[str]
    trial: Trial
    left_out: Mapping[str, int] = MappingProxyType({})
    starts: Sequence[str] = ()
    heads: Mapping[str, str] = MappingProxyType({})


class Found(NamedTuple):
    """What a run gave.

    Attributes:
        samples: all timed generations.
        alphas: n-alpha of every head.
        comparison: of the texts with plain decoding's.
        costs: seconds to verify by number of rows, where they were measured.
        communication: of a round with other hosts: collectives and bytes; None on one machine.
    """

    samples: Sequence[Sample]
    alphas: Sequence[Alphas]
    comparison: Comparison
    costs: Mapping[int, float] | None = None
    communication: Mapping[str, float] | None = None


def build_report(inputs: Inputs, found: Found) -> Report:
    """Return everything that is known of a run, ready for JSON."""
    summary = summarise(found.samples, inputs.contestants)
    least = slowest(summary, inputs.contestants[0])
    keys = ("temperature", "contestant", "category", "speedup")
    return {
        "command": inputs.command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "starts": list(inputs.starts),
        "machine": describe_machine(),
        "models": {key: getattr(inputs.info, key) for key in MODEL_KEYS},
        "prompts": _prompts(inputs),
        "contestants": list(inputs.contestants),
        "heads": dict(inputs.heads),
        "trial": inputs.trial._asdict(),
        "summary": [row.to_dict() for row in summary],
        "slowest": [{key: getattr(row, key) for key in keys} for row in least],
        **_papers(inputs, found),
        "n_alpha": [entry.to_dict() for entry in found.alphas],
        "equality": {
            "n_compared": found.comparison.n_compared,
            "n_bugs": len(found.comparison.bugs),
            "differences": [d._asdict() for d in found.comparison.differences],
        },
        "costs": None if found.costs is None else {str(n): s for n, s in found.costs.items()},
        "hosts": inputs.info.hosts,
        "communication": dict(found.communication) if found.communication else None,
        "samples": [_sample(sample) for sample in found.samples],
    }


def settings_of(inputs: Inputs) -> dict[str, Any]:
    """Return what a run's answers depend on, ready for JSON: where it differs, the run is another.

    The command is not among it, as other words may mean the same, nor what is expected of
    speculation, which is measured anew in another process.
    """
    models = {key: getattr(inputs.info, key) for key in MODEL_KEYS if key != "speculation"}
    asked = json.dumps([prompt._asdict() for prompt in inputs.prompts])
    return {
        "models": models,
        "machine": describe_machine(),
        "questions": hashlib.sha256(asked.encode()).hexdigest(),
        "contestants": list(inputs.contestants),
        **inputs.trial._asdict(),
    }


def _prompts(inputs: Inputs) -> Report:
    """Return where the questions are from, and how many there are of each category."""
    counts: dict[str, int] = {}
    for prompt in inputs.prompts:
        if prompt.follows is None:
            counts[prompt.category] = counts.get(prompt.category, 0) + 1
    left_out = {"left_out": dict(inputs.left_out)} if inputs.left_out else {}
    return {"source": inputs.source, "categories": counts, **left_out}


def _papers(inputs: Inputs, found: Found) -> Report:
    """Return the figures of data sets; nothing where there are none."""
    if not all(prompt.data_set for prompt in inputs.prompts):
        return {}
    sets = rows_by_set(found.samples, inputs.prompts)
    categories = rows_by_category(found.samples, inputs.prompts)
    return {
        "data_sets": [row.to_dict() for row in sets],
        "categories": [row.to_dict() for row in categories],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    """Return a timed generation without its text."""
    fields = sample._asdict()
    return fields | {"tokens": len(sample.tokens)}


def to_json(report: Report) -> str:
    """Return a report as JSON; what is no finite number becomes null."""
    return json.dumps(_finite(report), allow_nan=False)


def _finite(value: Any) -> Any:
    """Return a value in which infinity and not-a-number are None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
