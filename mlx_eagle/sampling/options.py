"""What a seeded draw depends on, described once; how it is drawn is in `samplers.py`.

A new option of the sampler is a field here and its use there. MLX is not imported here.
"""

from dataclasses import dataclass

from mlx_eagle.option import Number, Whole, check_options, fill_defaults, option

MATCH, RATIO, TYPICAL = "match", "ratio", "typical"
ACCEPTANCE = (MATCH, RATIO, TYPICAL)  # rules by which drafts are accepted where tokens are drawn
LOSSY = (
    "drafts are accepted by 'typical', which is lossy: the text does not keep the target's "
    "distribution (acceptance 'match' does)"
)
COLDEST = 1e-6  # temperature; below it float32 has no room for the scores


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token follows from the logits; temperature 0 is greedy decoding.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: only the likeliest tokens that together have this share; 1 is off.
        top_k: only so many of the likeliest tokens; 0 is off.
        min_p: only tokens that have at least this share of the likeliest one's; 0 is off.
        seed: the same seed gives the same text; None: every answer gets its own, which its
            statistics name.
    """

    temperature: float = option(
        0.0,
        "Temperature; 0 takes the likeliest token.",
        Number(COLDEST, or_zero=True),
        "sampling",
        flags=("--temp",),
        short="temp",
    )
    top_p: float = option(
        1.0,
        "Sample from the likeliest tokens of this share.",
        Number(0, 1, is_open=True),
        "sampling",
        short="top_p",
    )
    top_k: int = option(
        0, "Sample from the N likeliest tokens; 0: from all.", Whole(0), "sampling", short="top_k"
    )
    min_p: float = option(
        0.0,
        "Drop tokens below this share of the likeliest.",
        Number(0, 1),
        "sampling",
        short="min_p",
    )
    seed: int | None = option(
        None,
        "The same seed gives the same text; without one every answer gets its own.",
        Whole(0, 2**32 - 1),
        "sampling",
        short="seed",
        unset="random",
    )

    def __post_init__(self) -> None:
        fill_defaults(self)
        check_options(self)
