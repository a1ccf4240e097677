"""How the learning rates rise and fall: a pure function of the number of the update."""

FLOOR = 0.02  # share of the full rate below which no rate falls


def rate_factor(update: int, n_updates: int, *, warmup: float, decay_from: float) -> float:
    """Return by how much the full learning rates are multiplied in an update.

    They rise in equal steps, so that the last update of the warm-up has the full rate, stay, and
    fall in a line that would reach zero after the last update, but not below `FLOOR`.

    Worked example, 10 updates, warmup 0.2, decay_from 0.5:

        update  0    1    2    3    4    5    6    7    8    9
        factor  0.5  1.0  1.0  1.0  1.0  1.0  0.8  0.6  0.4  0.2

    Args:
        update: number of the update, from 0 on.
        n_updates: updates of the whole training.
        warmup: share of the updates over which the factor rises.
        decay_from: share of the updates after which it falls; 1 for never.
    """
    rise = min(1.0, (update + 1) / max(1, round(warmup * n_updates)))
    done = update / n_updates
    if done < decay_from or decay_from >= 1:
        return rise
    return rise * max(FLOOR, (1 - done) / (1 - decay_from))
