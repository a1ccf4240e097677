"""A run's results as one JSON-ready object, which `report_markdown.py` and `plots.py` show."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from mlx_eagle.bench.machine import describe_machine
from mlx_eagle.bench.measure import Trial
from mlx_eagle.bench.metrics import Probe, Sample, alphas, summarise
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
        contestants: their names.
        trial: how it was measured.
    """

    command: str
    info: EngineInfo
    source: str
    prompts: Sequence[BenchPrompt]
    contestants: Sequence[str]
    trial: Trial


def build_report(
    inputs: Inputs,
    samples: Sequence[Sample],
    probes: Sequence[Probe],
    comparison: Comparison,
    costs: Mapping[int, float] | None = None,
) -> Report:
    """Return everything that is known of a run, ready for JSON.

    Args:
        inputs: what the run was given.
        samples: all timed generations.
        probes: the untimed ones, for n-alpha.
        comparison: of the texts with plain decoding's.
        costs: seconds to verify by number of rows, where they were measured.
    """
    counts: dict[str, int] = {}
    for prompt in inputs.prompts:
        counts[prompt.category] = counts.get(prompt.category, 0) + 1
    return {
        "command": inputs.command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "models": {key: getattr(inputs.info, key) for key in MODEL_KEYS},
        "prompts": {"source": inputs.source, "categories": counts},
        "contestants": list(inputs.contestants),
        "trial": inputs.trial._asdict(),
        "summary": [row.to_dict() for row in summarise(samples, inputs.contestants)],
        "n_alpha": [entry.to_dict() for entry in alphas(probes)],
        "equality": {
            "n_compared": comparison.n_compared,
            "n_bugs": len(comparison.bugs),
            "differences": [d._asdict() for d in comparison.differences],
        },
        "costs": None if costs is None else {str(n): s for n, s in costs.items()},
        "samples": [_sample(sample) for sample in samples],
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
