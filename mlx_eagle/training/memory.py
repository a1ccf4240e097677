"""How much memory a training will take: an estimate by counting arrays, before anything is loaded.

It counts what is kept from the forward pass for the gradients, and the largest of what comes and
goes. MLX frees and reuses as it runs, so it is fitted to trainings on a CPU: nine small ones took
0.63 to 0.96 times as much, with steps computed again 0.96 to 1.13 times, and nine of the older
kinds of heads 0.82 to 1.12 times. No larger one and none on a GPU was compared. A third is added
before it is compared with what there is.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from mlx_eagle.errors import EagleError
from mlx_eagle.heads import unroll
from mlx_eagle.heads.config import HeadConfig, MedusaConfig
from mlx_eagle.training.objectives import losses
from mlx_eagle.training.objectives.eagle3 import STEPS
from mlx_eagle.training.options import DataOptions, HeadOptions, LoopOptions

MARGIN = 4 / 3  # of what a training may take to what is counted here
FLOAT = 4  # bytes of a trained weight, its gradient, and what the optimizer keeps
GIGABYTE = 1e9
COPIES = 4  # of scores of attention: before and after the softmax, and their gradients
# Of a block of logits, fitted on a CPU: MLX makes arrays before it has used up earlier ones.
LOGIT_COPIES = {"eagle3": 20, "hass": 20, "eagle": 14, "medusa": 14}


class MemoryEstimate(NamedTuple):
    """Bytes that a training will take besides the target, estimated.

    Attributes:
        weights: of the head.
        gradients: of its weights; twice that where batches are accumulated.
        optimizer: what it keeps of them, and the largest matrix that Muon works on.
        activations: what is kept of all steps for the gradients.
        logits: the target's distribution, and the head's logits of every step.
        features: what the target computed, of this batch and the next one.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    features: int

    @property
    def total(self) -> int:
        """All of it together."""
        return sum(self)

    @property
    def most(self) -> int:
        """What it may come to: `MARGIN` times as much."""
        return int(MARGIN * self.total)


def estimate_memory(
    config: HeadConfig | MedusaConfig,
    shapes: Mapping[str, tuple[int, ...]],
    data: DataOptions,
    options: HeadOptions,
    loop: LoopOptions,
    feature_bytes: int = 2,
) -> MemoryEstimate:
    """Estimate the memory of a training.

    Args:
        config: of the head.
        shapes: of its trainable weights, by name; a head that is made but not evaluated tells.
        data: how long rows are.
        options: what is trained, in how many steps.
        loop: how many rows, and which optimizer.
        feature_bytes: of a number of the target's features, as they are kept.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    matrices = [shape for shape in shapes.values() if len(shape) == 2]
    n, rows = sum(sizes), loop.batch * data.length
    largest = max((math.prod(shape) for shape in matrices), default=0)
    # AdamW keeps two numbers of a weight, Muon one; embeddings and output layers are AdamW's.
    tokens = sum(s for s, name in zip(sizes, shapes, strict=True) if _is_of_tokens(name))
    kept = 2 * n if loop.optimizer == "adamw" else n + tokens + 2 * largest
    width = len(config.taps) * config.target_hidden_size + config.target_hidden_size
    return MemoryEstimate(
        weights=FLOAT * n,
        gradients=FLOAT * n * (2 if loop.accumulate > 1 else 1),
        optimizer=FLOAT * kept,
        activations=FLOAT * _activations(config, options, loop, data.length),
        logits=FLOAT * _logits(config, options, loop, data.length),
        features=2 * feature_bytes * rows * width,
    )


def check_memory(
    estimate: MemoryEstimate, available: int, options: HeadOptions, loop: LoopOptions
) -> None:
    """Raise if a training may take more memory than there is.

    Args:
        estimate: what it will take.
        available: bytes that it may take, without the target's.
        options: what is trained.
        loop: tells, as they do, which advice is left to give.

    Raises:
        EagleError: with what takes most, and what to change.
    """
    if estimate.most <= available:
        return
    name, most = max(estimate._asdict().items(), key=lambda item: item[1])
    is_eagle3 = options.algorithm == "eagle3"
    advice = [
        *(["--recompute"] if is_eagle3 and not loop.recompute else []),
        *([f"--batch {loop.batch // 2} with --accumulate"] if loop.batch > 1 else []),
        "a smaller --length",
        *(["a smaller --draft-vocab"] if is_eagle3 else []),
        *(["--optimizer muon"] if loop.optimizer == "adamw" else []),
    ]
    raise EagleError(
        f"training may take {estimate.most / GIGABYTE:.1f} GB besides the target (an estimate with "
        f"a third added; most of it: {name}, {most / GIGABYTE:.1f} GB), and "
        f"{max(available, 0) / GIGABYTE:.1f} GB are there: use {', '.join(advice[:-1])} or "
        f"{advice[-1]}, or allow more with --memory"
    )


def n_steps(options: HeadOptions) -> int:
    """Return how many steps, or passes, a head of the EAGLE family is trained by."""
    return options.steps or STEPS[options.algorithm]


def _is_of_tokens(name: str) -> bool:
    """Say whether a weight has a row for each token."""
    return "lm_head" in name or "embed_tokens" in name


def _logits(
    config: HeadConfig | MedusaConfig, options: HeadOptions, loop: LoopOptions, length: int
) -> int:
    """Return how many numbers of logits and probabilities exist at the same time."""
    rows, vocabulary = loop.batch * length, config.draft_vocab_size
    block = LOGIT_COPIES[options.algorithm] * loop.batch * min(losses.BLOCK, length)
    if options.algorithm == "eagle3":  # the teacher's rows serve all steps
        return round((3.5 * rows + block + 2 * config.hidden_size) * vocabulary)
    # The gradient of an own output layer, which blocks add to.
    has_own = config.own_lm_heads if isinstance(config, MedusaConfig) else config.own_lm_head
    return (block + (2 * config.hidden_size if has_own else 0)) * vocabulary


def _activations(
    config: HeadConfig | MedusaConfig, options: HeadOptions, loop: LoopOptions, length: int
) -> int:
    """Return how many numbers are kept for the gradients."""
    rows, h = loop.batch * length, config.hidden_size
    if isinstance(config, MedusaConfig):
        return rows * config.num_heads * (4 * config.num_layers + 2) * h
    steps = n_steps(options)
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    # Of a layer: norms and their input, queries to values before and after rope, what attention
    # and the MLP give, and six arrays as wide as the MLP. The first one reads two hidden states.
    layer = 12 * h + 2 * (q + 2 * kv) + q + 6 * config.intermediate_size
    whole = config.num_hidden_layers * layer + 4 * h
    # Recomputed, a step keeps what it reads (of its tokens q, k and v), gives and attends to; one
    # step is whole at a time.
    small = 3 * h + q + 2 * kv + 2 * kv * config.num_hidden_layers
    is_small = loop.recompute and options.algorithm == "eagle3"
    kept = steps * small + whole if is_small else steps * whole
    scores = COPIES * loop.batch * config.num_attention_heads * min(unroll.BLOCK, length) * length
    return rows * kept + scores
