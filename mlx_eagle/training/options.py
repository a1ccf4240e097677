"""How a head is trained: described options, checked when they are made. MLX is not imported."""

from dataclasses import dataclass

from mlx_eagle.errors import EagleError
from mlx_eagle.option import Choice, Number, Switch, Whole, Wholes, check_options, option


@dataclass(frozen=True)
class DataOptions:
    """What a head is trained on.

    Attributes:
        answers: "given" trains on the answers in the data, "target" on answers that the target
            writes itself; "auto" lets the target answer where the data has no answers.
        answer_tokens: longest answer that the target writes, in tokens.
        answer_temperature: temperature of these answers; 0 is greedy.
        answers_at_once: conversations that the target answers together.
        train_on: "answers" or "all": tokens that the head learns to foresee.
        heldout: share of the conversations that is kept apart to measure on.
        length: tokens of a row; longer texts are cut into several.
        draft_vocab: tokens that the head can propose, the most frequent ones of what it is trained
            on; None is every token of the target.
        features: "disk" computes the target's features once and keeps them, "compute" computes
            them whenever they are needed.
    """

    answers: str = option(
        "auto",
        "Train on the answers given in the data, or on answers that the target writes itself. "
        "auto: the target answers where the data has none.",
        Choice(("auto", "given", "target")),
        "data",
    )
    answer_tokens: int = option(
        512, "Longest answer that the target writes, in tokens.", Whole(1), "data"
    )
    answer_temperature: float = option(
        0.0, "Temperature of these answers; 0: greedy.", Number(0, 2), "data"
    )
    answers_at_once: int = option(
        16, "Conversations that the target answers together.", Whole(1), "data"
    )
    train_on: str = option(
        "answers", "Tokens that the head learns to foresee.", Choice(("answers", "all")), "data"
    )
    heldout: float = option(
        0.02, "Share of the conversations to measure on.", Number(0, 0.5), "data"
    )
    length: int = option(
        2048, "Tokens of a row; longer texts are cut into several.", Whole(16), "data"
    )
    draft_vocab: int | None = option(
        32000,
        "Tokens that the head can propose: the most frequent ones. all: every one.",
        Whole(1),
        "data",
        unset="all",
    )
    features: str = option(
        "disk",
        "Compute the target's features once and keep them on disk, or whenever they are needed.",
        Choice(("disk", "compute")),
        "data",
    )

    def __post_init__(self) -> None:
        check_options(self, error=EagleError)


@dataclass(frozen=True)
class HeadOptions:
    """What kind of head is made.

    Attributes:
        algorithm: "eagle3" (training-time test), "eagle" (EAGLE-1), "hass" or "medusa".
        taps: boundaries of the target that the head reads; () is EAGLE-3's choice of three.
        layers: decoder layers of the head, or depths of Medusa heads.
        intermediate: width of its MLP; None is the target's.
        norms: "eagle3", or "eagle3.1": one norm per tap, and the next step reads the normed output.
        window: tokens that the head attends to; None is all.
        steps: steps of training-time test, or passes of HASS; None is 7 and 3.
        step_decay: weight of a step's loss, relative to the step before.
        noise: uniform noise on the features that an EAGLE-1 head reads in training, up to this.
        feature_weight: weight of a further loss of EAGLE-3 heads: how far the output is from the
            target's final state. The paper found heads better without it.
    """

    algorithm: str = option(
        "eagle3", "What is trained.", Choice(("eagle3", "eagle", "hass", "medusa")), "head"
    )
    taps: tuple[int, ...] = option(
        (),
        "Boundaries of the target that an EAGLE-3 head reads: 2,16,29. Default: the paper's three.",
        Wholes(),
        "head",
    )
    layers: int = option(
        1, "Decoder layers of the head, or depths of Medusa heads.", Whole(1, 16), "head"
    )
    intermediate: int | None = option(
        None, "Width of the head's MLP. Default: the target's.", Whole(1), "head", unset="auto"
    )
    norms: str = option(
        "eagle3",
        "Where the head has norms; eagle3.1: one per tap, and the next step reads the normed "
        "output.",
        Choice(("eagle3", "eagle3.1")),
        "head",
    )
    window: int | None = option(
        None, "Tokens that the head attends to. Default: all.", Whole(1), "head", unset="none"
    )
    steps: int | None = option(
        None,
        "Steps of training-time test (default 7), or passes of HASS (default 3).",
        Whole(1, 32),
        "head",
        unset="auto",
    )
    step_decay: float = option(
        0.8, "Weight of a step's loss, relative to the step before.", Number(0, 1), "head"
    )
    noise: float = option(
        0.1, "Noise on the features that an EAGLE-1 head reads, up to this.", Number(0), "head"
    )
    feature_weight: float = option(
        0.0,
        "Weight of the distance to the target's final state, in an EAGLE-3 head's loss.",
        Number(0),
        "head",
    )

    def __post_init__(self) -> None:
        check_options(self, error=EagleError)


@dataclass(frozen=True)
class LoopOptions:
    """How the weights are found.

    Attributes:
        epochs: times that all texts are seen.
        max_updates: ends training after so many updates of the weights; None: after the epochs.
        batch: rows of a batch.
        accumulate: batches whose gradients are added for one update.
        optimizer: "muon" for matrices with AdamW for the rest, or "adamw" for everything.
        learning_rate: of AdamW; None is chosen for the optimizer.
        muon_rate: learning rate of the matrices under Muon.
        warmup: share of the updates over which the rates rise.
        decay_from: share of the updates from which the rates fall, linearly.
        clip: largest norm of all gradients together; 0 does not clip.
        precision: "float32" or "bfloat16" for what is computed; weights are float32 in any case.
            "auto" is bfloat16 on a GPU.
        recompute: forget activations and compute them again for the gradients: less memory.
        save_every: updates between checkpoints.
        measure_every: updates between measurements on what was held out.
        seed: of the initial weights and the order of the texts.
    """

    epochs: int = option(3, "Times that all texts are seen.", Whole(1), "training")
    max_updates: int | None = option(
        None,
        "Updates of the weights after which training ends. Default: those of the epochs.",
        Whole(1),
        "training",
        unset="none",
    )
    batch: int = option(4, "Rows of a batch.", Whole(1), "training")
    accumulate: int = option(
        1, "Batches whose gradients are added for one update.", Whole(1), "training"
    )
    optimizer: str = option(
        "muon",
        "AdamW for every weight, or Muon for matrices with AdamW for the rest.",
        Choice(("muon", "adamw")),
        "training",
    )
    learning_rate: float | None = option(
        None,
        "Learning rate of AdamW. Default: chosen for the optimizer.",
        Number(0, 1, is_open=True),
        "training",
        unset="auto",
    )
    muon_rate: float = option(
        0.02, "Learning rate of the matrices under Muon.", Number(0, 1, is_open=True), "training"
    )
    warmup: float = option(
        0.02, "Share of the updates over which the rates rise.", Number(0, 1), "training"
    )
    decay_from: float = option(
        0.5, "Share of the updates from which the rates fall.", Number(0, 1), "training"
    )
    clip: float = option(
        1.0, "Largest norm of all gradients together; 0: no clipping.", Number(0), "training"
    )
    precision: str = option(
        "auto",
        "Numbers to compute in; weights are float32 in any case. auto: bfloat16 on a GPU.",
        Choice(("auto", "float32", "bfloat16")),
        "training",
    )
    recompute: bool = option(
        False,
        "Forget activations and compute them again for the gradients: less memory, more time.",
        Switch(),
        "training",
    )
    save_every: int = option(100, "Updates between checkpoints.", Whole(1), "training")
    measure_every: int = option(
        200, "Updates between measurements on the held-out texts.", Whole(1), "training"
    )
    seed: int = option(0, "Of the first weights and the order of the texts.", Whole(0), "training")

    def __post_init__(self) -> None:
        check_options(self, error=EagleError)
