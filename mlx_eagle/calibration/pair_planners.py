"""The planners of a pair: its records found, its costs measured if need be, its head watched."""

from collections.abc import Callable, Mapping
from pathlib import Path

import mlx.core as mx

from mlx_eagle.calibration.head_health import HeadWatch
from mlx_eagle.calibration.planners import Planners, find_costs
from mlx_eagle.calibration.store import Identity, Records, this_machine
from mlx_eagle.drafters.make import make_drafter
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.heads.load import AnyHead
from mlx_eagle.heads.ngram import sources_of
from mlx_eagle.hub.head_choice import fingerprint
from mlx_eagle.target.load import precision
from mlx_eagle.target.target import Target


def planners_of_pair(
    target: Target,
    head: AnyHead,
    records: Records,
    remedy: str,
    *,
    may_measure: bool,
    report: Callable[[int, int], None],
) -> Planners:
    """Return what plans trees, with the costs of this machine: on record, measured or published.

    Args:
        target: the target that verifies.
        head: the head that drafts for it.
        records: of the pair.
        remedy: the command that finds out why the head drafts badly; "" for one that cannot be
            run wrongly.
        may_measure: False takes published costs where none are on record.
        report: called with (steps done, steps in all) if costs are measured.
    """
    drafter = make_drafter(head, target)
    costs = find_costs(target, drafter, records, report, may_measure=may_measure)
    watch = HeadWatch(remedy) if remedy else None
    chains_only, sources = target.chains_only, sources_of(head)
    return Planners(costs, head.max_depth, records, watch, chains_only=chains_only, sources=sources)


def records_of_pair(
    target: Target,
    head: AnyHead,
    target_folder: Path,
    head_folder: Path | None,
    *,
    adapter: str | None = None,
    more: Mapping[str, str] | None = None,
) -> Records:
    """Return what is on record of a pair on this machine.

    Args:
        target: the target, with the caches that it is used with.
        head: the head.
        target_folder: where the target is.
        head_folder: where the converted head is; None for lookup alone, which has no files.
        adapter: where the target's adapter is, if it has one.
        more: what else the costs depend on.
    """
    facts = {
        "target": fingerprint(target_folder),
        "target precision": precision(target.model),
        "KV cache": str(target.kv),
    }
    if head_folder is None:  # lookup: nothing of it is stored, and it reads no activations
        facts |= {"head": head.config.algorithm}
    else:
        facts |= {"head": fingerprint(head_folder), "head precision": precision(head)}
        facts |= {"activations": str(target.embedding(mx.array([0])).dtype)}
    if adapter is not None:
        facts["adapter"] = fingerprint(Path(adapter))
    records = Records(cache_folder(), Identity(this_machine(), facts | dict(more or {})))
    return records.with_kernels(target.few_rows.identity)
