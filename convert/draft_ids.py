"""The draft vocabulary: which target ids a head's draft ids stand for.

Published heads store offsets (d2t: draft id j is target id j + d2t[j]) and a mask of the target's
vocabulary (t2d). Both are known to be broken in ways that make a head useless without a warning.
"""

import numpy as np

from mlx_eagle.errors import CheckpointError


def draft_to_target(
    d2t: np.ndarray | None, t2d: np.ndarray | None, n_draft: int, n_target: int
) -> tuple[np.ndarray, str]:
    """Return the target id of every draft id [W] int32, and where it comes from.

    Published tables are offsets: draft id j is target id j + d2t[j]. Some files hold absolute ids
    instead; where d2t is unusable, t2d replaces it.

    Args:
        d2t: [W] integers, or None.
        t2d: [V] bool, true for the target ids that can be drafted, or None.
        n_draft: W, the number of draft ids.
        n_target: V, the number of target ids.

    Raises:
        CheckpointError: if the tables are missing, malformed or contradictory.
    """
    if n_draft == n_target and (d2t is None or not d2t.any()):
        return np.arange(n_draft, dtype=np.int32), "identity"
    readings = {} if t2d is None else {"t2d": _marked_ids(t2d, n_draft, n_target)}
    if d2t is not None:
        if d2t.shape != (n_draft,) or d2t.dtype.kind != "i":
            raise CheckpointError(
                f"d2t is {d2t.dtype} {list(d2t.shape)}, expected integers [{n_draft}]"
            )
        readings |= {"d2t, offsets": np.arange(n_draft) + d2t, "d2t, absolute ids": d2t}
    if not readings:
        raise CheckpointError(f"d2t is missing: which {n_draft} of {n_target} ids are drafted?")
    label = _choose_reading(readings, n_target)
    return readings[label].astype(np.int32), label


def _marked_ids(t2d: np.ndarray, n_draft: int, n_target: int) -> np.ndarray:
    """Return the ids [W] int32 that t2d marks; they must be as many as the head has draft ids."""
    if t2d.shape != (n_target,) or t2d.dtype != np.bool_:
        raise CheckpointError(
            f"t2d is {t2d.dtype} {list(t2d.shape)}, expected bool [{n_target}], one per target id"
        )
    marked = np.flatnonzero(t2d).astype(np.int32)
    if len(marked) != n_draft:
        raise CheckpointError(f"t2d marks {len(marked)} ids, the head drafts from {n_draft}")
    return marked


def _choose_reading(readings: dict[str, np.ndarray], n_target: int) -> str:
    """Return the label of the reading to believe.

    Args:
        readings: target ids [W] by label: as t2d marks them, as d2t says if it holds offsets, and
            if it holds absolute ids. A table that the head lacks is left out.
        n_target: V, the number of target ids.
    """
    marked = readings.get("t2d")
    of_d2t = {label: ids for label, ids in readings.items() if label != "t2d"}
    if not of_d2t:
        return "t2d"
    for label, ids in of_d2t.items():
        if marked is not None and np.array_equal(ids, marked):
            return label
    offsets, absolute = of_d2t.values()
    # Two known bugs of trainers: a table of zeros, and one of 0, 1, 2, ...
    is_blank = not absolute.any() or np.array_equal(absolute, np.arange(len(absolute)))
    usable = [] if is_blank else [k for k, ids in of_d2t.items() if not _fault(ids, n_target)]
    if marked is None and usable:
        return usable[0]
    if marked is None:
        fault = "it is all zeros or 0, 1, 2, ..." if is_blank else _fault(offsets, n_target)
        raise CheckpointError(f"d2t is not usable: {fault}; and there is no t2d to replace it")
    if usable:
        raise CheckpointError("d2t and t2d name different ids, and either may be wrong")
    return "t2d"


def _fault(ids: np.ndarray, n_target: int) -> str:
    """Return what is wrong with a list [W] of target ids, or nothing."""
    if ids.min() < 0 or ids.max() >= n_target:
        return f"it leads to id {ids.min() if ids.min() < 0 else ids.max()} of {n_target}"
    return "it names a target id twice" if len(np.unique(ids)) < len(ids) else ""
