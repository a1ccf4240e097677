"""Which boundaries of the target a head reads: the fact that published files get wrong most often.

Boundary b is the residual stream after b decoder layers. Some publishers write boundaries, others
the index of the layer whose output is read (b - 1), under several keys; the defaults agree, the
explicit ids do not. A wrong tap costs most of the acceptance and is no error anywhere.
"""

from typing import Any

from mlx_eagle.convert.dialects import BOUNDARY_KEY, OUTPUT_KEYS
from mlx_eagle.convert.facts import Fact
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote_value


def resolve_taps(config: dict[str, Any], n_layers: int, n_taps: int) -> Fact:
    """Return the boundaries, ascending, that a head of `n_taps` taps reads.

    Args:
        config: the published configuration.
        n_layers: n, decoder layers of the target.
        n_taps: A, as the shape of fc tells.

    Raises:
        CheckpointError: if ids are malformed, are not A, or do not fit the target.
    """
    fact = _read(config, n_layers, n_taps)
    check_taps(fact.value, fact.origin, n_layers, n_taps)
    return fact


def check_taps(boundaries: Any, origin: str, n_layers: int, n_taps: int) -> None:
    """Raise CheckpointError unless these are as many boundaries as the head reads, ascending."""
    are_ids = isinstance(boundaries, list) and all(_is_id(b) for b in boundaries)
    if not are_ids or len(boundaries) != n_taps or not _are_boundaries(tuple(boundaries), n_layers):
        shown = boundaries if are_ids else quote_value(boundaries)
        raise CheckpointError(
            f"the head's taps are {shown} ({origin}), but its fc reads {n_taps} of the "
            f"boundaries 0 to {n_layers} of the target, ascending; name them with --set taps=..."
        )


def _are_boundaries(ids: tuple[int, ...], n_layers: int) -> bool:
    """Say whether ids are boundaries of a target of `n_layers` layers, ascending."""
    in_range = all(0 <= b <= n_layers for b in ids)
    return in_range and list(ids) == sorted(set(ids))


def default_taps(n_layers: int) -> tuple[int, int, int]:
    """Return the boundaries that heads without a choice of their own are trained on."""
    return (2, n_layers // 2, n_layers - 3)


def plausible_taps(taps: tuple[int, ...], n_layers: int) -> list[tuple[int, ...]]:
    """Return other readings of the same ids: one layer off, the default, the middle one off."""
    later, earlier = tuple(b + 1 for b in taps), tuple(b - 1 for b in taps)
    middle = len(taps) // 2
    nudged = [(*taps[:middle], taps[middle] + d, *taps[middle + 1 :]) for d in (1, -1)]
    default = [default_taps(n_layers)] if len(taps) == 3 else []
    found = dict.fromkeys([later, earlier, *default, *nudged])
    return [t for t in found if t != taps and _are_boundaries(t, n_layers)]


def _read(config: dict[str, Any], n_layers: int, n_taps: int) -> Fact:
    """Return the boundaries by the first key that names any."""
    for key in OUTPUT_KEYS:
        if ids := _ids(config, key):
            return Fact(_after(ids), f"config.json: {key}, layers whose output is read")
    if ids := _ids(config, BOUNDARY_KEY):
        return _top_level(ids, n_layers)
    nested = config.get("eagle_config")
    if isinstance(nested, dict) and (ids := _ids(nested, BOUNDARY_KEY)):
        return _nested(ids, n_layers)
    if n_taps != 3:
        raise CheckpointError(
            f"the head reads {n_taps} taps and its config.json does not say which; name the "
            "boundaries with --set taps=..."
        )
    default = list(default_taps(n_layers))
    return Fact(default, "default: after 2, half and all but 3 of the layers")


def _top_level(ids: list[int], n_layers: int) -> Fact:
    """Read ids at the top level: boundaries, unless they are the usual output ids, copied there."""
    where = f"config.json: {BOUNDARY_KEY}"
    if _after(ids) != list(default_taps(n_layers)):
        return Fact(ids, f"{where}, boundaries")
    reason = (
        "these ids are the default layers whose output is read, copied to a key that holds "
        "boundaries"
    )
    fact = Fact(_after(ids), f"{where}, read as layers whose output is read")
    return fact.doubted(reason, [ids])


def _nested(ids: list[int], n_layers: int) -> Fact:
    """Read ids inside eagle_config, where publishers have written both conventions."""
    where = f"config.json: eagle_config.{BOUNDARY_KEY}"
    default = list(default_taps(n_layers))
    if max(ids) == n_layers or ids == default:
        return Fact(ids, f"{where}, boundaries")
    if ids[0] == 1:
        fact = Fact(_after(ids), f"{where}, layers whose output is read")
        reason = "some publishers write boundaries under this key"
        return fact if fact.value == default else fact.doubted(reason, [ids])
    reason = "publishers write boundaries as well as layer numbers under this key"
    fact = Fact(_after(ids), f"guess: {where} are layers whose output is read")
    return fact.doubted(reason, [ids])


def _after(ids: list[int]) -> list[int]:
    return [i + 1 for i in ids]


def _ids(config: dict[str, Any], key: str) -> list[int]:
    """Return the ids under a key, ascending; none if it is absent or null."""
    ids = config.get(key)
    if ids is None:
        return []
    if not isinstance(ids, list) or not 0 < len(ids) <= 64 or not all(_is_id(i) for i in ids):
        raise CheckpointError(f"config.json: {key} is {quote_value(ids)}, not a list of layers")
    return sorted(ids)


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 10_000
