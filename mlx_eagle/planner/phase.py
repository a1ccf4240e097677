"""When drafting pauses, and when it is tried again."""

from typing import NamedTuple

SHORTEST = 4  # tokens of a pause


class Phase(NamedTuple):
    """Drafting, or a pause: its plain rounds that are still to come, and the next one's length."""

    plain_left: int = 0
    next_pause: int = SHORTEST


def next_state(phase: Phase, *, pays: bool, is_surprise: bool, longest: int) -> Phase:
    """Return the phase after a round that drafted.

    Args:
        phase: the phase before it.
        pays: whether drafting is faster than plain decoding of late. Where it is not, the next
            pause begins, and every pause is twice as long as the one before.
        is_surprise: whether the target chose a token of which that was not expected. The head may
            have recovered: pauses begin with the shortest again.
        longest: tokens that a pause may take.
    """
    pause = SHORTEST if is_surprise else phase.next_pause
    return Phase() if pays else Phase(pause, max(SHORTEST, min(2 * pause, longest)))
