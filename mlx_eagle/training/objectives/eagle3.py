"""What a head is trained towards: a batch in, the loss to make smaller and its figures out.

EAGLE-3's training-time test is written down here (arXiv 2503.01840, section 3.2). Start t of a row
reads the target's taps at token t and the token t + 1; step i of it reads the token t + 1 + i, and
should foresee what the target makes of it: its distribution at t + 1 + i. The older objectives are
in `older.py`.
"""

import mlx.core as mx

from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import Head
from mlx_eagle.heads.unroll import UnrolledCache
from mlx_eagle.training.batch import Batch, Figures, Objective
from mlx_eagle.training.objectives.losses import probabilities, smooth_l1, soft_cross_entropy
from mlx_eagle.training.objectives.older import eagle_objective, medusa_objective
from mlx_eagle.training.objectives.positions import ahead, counted_starts, draft_id_of_target, tally
from mlx_eagle.training.objectives.recompute import recomputed
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import HeadOptions

STEPS = {"eagle3": 7, "eagle": 1, "hass": 3}  # where the options do not say


def make_objective(
    head: Head, teacher: Teacher, options: HeadOptions, *, recompute: bool = False
) -> Objective:
    """Return the objective of the options' algorithm.

    Args:
        head: its parameters are what is trained.
        teacher: the target's layers.
        options: the algorithm, its steps and weights.
        recompute: forget what a step of an EAGLE-3 head computes inside, and compute it again for
            the gradients.
    """
    if options.algorithm == "medusa":
        return medusa_objective(head, teacher, options)
    steps = options.steps or STEPS[options.algorithm]
    assert isinstance(head, EagleHead), "all others are of the EAGLE family"
    if options.algorithm == "eagle3":
        return eagle3_objective(head, teacher, options, steps, recompute=recompute)
    return eagle_objective(head, teacher, options, steps)


def eagle3_objective(
    head: EagleHead, teacher: Teacher, options: HeadOptions, steps: int, *, recompute: bool = False
) -> Objective:
    """Return training-time test: what a head drafts from its own states is compared as well."""
    logits = teacher.logits_of(head.draft_to_target)
    draft_ids = draft_id_of_target(head)
    embed = head.embed_tokens if head.config.own_embedding else teacher.embedding
    borrowed = None if head.config.own_lm_head else teacher.weight(head.draft_to_target)

    factors = [options.step_decay**i for i in range(steps)]

    def objective(batch: Batch) -> tuple[mx.array, Figures]:
        teacher_probs = probabilities(batch.final, logits)
        choices = draft_ids[batch.choices]
        counts = [counted_starts(batch, i) for i in range(steps)]
        wanted = [ahead(choices, 1 + i) for i in range(steps)]
        weights = [
            (counted & (choice >= 0)).astype(mx.float32) / batch.tokens.size
            for counted, choice in zip(counts, wanted, strict=True)
        ]
        normed = unrolled(
            head, batch, embed(batch.tokens).astype(batch.taps.dtype), steps, recompute
        )
        rows = head.lm_head.weight if borrowed is None else borrowed.astype(normed[0].dtype)
        losses = soft_cross_entropy(normed, rows, teacher_probs, weights, factors)
        hits = [
            (counted & (likeliest == choice)).sum()
            for counted, likeliest, choice in zip(counts, losses.likeliest, wanted, strict=True)
        ]
        total = losses.total
        if options.feature_weight:
            for i, (out, weight) in enumerate(zip(normed, weights, strict=True)):
                away = smooth_l1(out, ahead(batch.final, 1 + i), weight)
                total = total + options.feature_weight * factors[i] * away
        return total, tally(losses.each, hits, [counted.sum() for counted in counts])

    return objective


def unrolled(
    head: EagleHead, batch: Batch, embeddings: mx.array, steps: int, recompute: bool
) -> list[mx.array]:
    """Return what `steps` steps give at every token, before the output layer: [B, L, h] each.

    Args:
        head: each step reads what the one before gave.
        batch: the first step reads its taps.
        embeddings: [B, L, h] of its tokens.
        steps: K.
        recompute: as in `make_objective`.
    """
    tokens = head.token_side(embeddings)
    n = len(tokens)

    def step(hidden: mx.array, *read: mx.array) -> list[mx.array]:
        cache = UnrolledCache.of(head, batch.texts, read[n:])
        out = head(hidden, read[:n], cache)
        return [out.normed, out.feedback, *cache.newest]

    one_step = recomputed(head, step) if recompute else step
    hidden, earlier, found = head.fuse(batch.taps), list[mx.array](), list[mx.array]()
    for i in range(steps):
        next_tokens = [ahead(side, 1 + i) for side in tokens]
        normed, hidden, *newest = one_step(hidden, *next_tokens, *earlier)
        earlier += newest
        found.append(normed)
    return found
