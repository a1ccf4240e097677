"""What a head is trained towards: a batch in, the loss to make smaller and its figures out.

EAGLE-3's training-time test is written down here (arXiv 2503.01840, section 3.2). Start t of a row
reads the target's taps at token t and the token t + 1; step i of it reads the token t + 1 + i, and
should foresee what the target makes of it: its distribution at t + 1 + i. The older objectives are
in `older_objectives.py`.
"""

import mlx.core as mx

from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.exponential import softmax
from mlx_eagle.heads.load import Head
from mlx_eagle.heads.unroll import UnrolledCache
from mlx_eagle.training.batch import Batch, Figures, Objective
from mlx_eagle.training.losses import smooth_l1, soft_cross_entropy
from mlx_eagle.training.older_objectives import eagle_objective, medusa_objective
from mlx_eagle.training.options import HeadOptions
from mlx_eagle.training.positions import ahead, counted_starts, tally
from mlx_eagle.training.teacher import Teacher

STEPS = {"eagle3": 7, "eagle": 1, "hass": 3}  # where the options do not say


def make_objective(head: Head, teacher: Teacher, options: HeadOptions) -> Objective:
    """Return the objective of the options' algorithm.

    Args:
        head: its parameters are what is trained.
        teacher: the target's layers.
        options: the algorithm, its steps and weights.
    """
    if options.algorithm == "medusa":
        return medusa_objective(head, teacher, options)
    steps = options.steps or STEPS[options.algorithm]
    assert isinstance(head, EagleHead), "all others are of the EAGLE family"
    if options.algorithm == "eagle3":
        return eagle3_objective(head, teacher, options, steps)
    return eagle_objective(head, teacher, steps, is_hass=options.algorithm == "hass")


def eagle3_objective(
    head: EagleHead, teacher: Teacher, options: HeadOptions, steps: int
) -> Objective:
    """Return training-time test: what a head drafts from its own states is compared as well."""
    logits = teacher.logits_of(head.draft_to_target)
    draft_ids = draft_id_of_target(head)
    embed = head.embed_tokens if head.config.own_embedding else teacher.embedding

    def objective(batch: Batch) -> tuple[mx.array, Figures]:
        probabilities = softmax(logits(batch.final).astype(mx.float32))
        embeddings, choices = mx.stop_gradient(embed(batch.tokens)), draft_ids[batch.choices]
        cache, hidden = UnrolledCache.of(head, batch.texts), head.fuse(batch.taps)
        losses, hits, counted = [], [], []
        for i in range(steps):
            out = head(hidden, ahead(embeddings, 1 + i), cache)
            counts, choice = counted_starts(batch, i), ahead(choices, 1 + i)
            weights = (counts & (choice >= 0)).astype(mx.float32) / batch.tokens.size
            loss, likeliest = soft_cross_entropy(
                out.normed, head.lm_head.weight, ahead(probabilities, 1 + i), weights
            )
            if options.feature_weight:
                away = smooth_l1(out.normed, ahead(batch.final, 1 + i), weights)
                loss = loss + options.feature_weight * away
            losses.append(loss)
            hits.append((counts & (likeliest == choice)).sum())
            counted.append(counts.sum())
            hidden = out.feedback
        total = sum(options.step_decay**i * loss for i, loss in enumerate(losses))
        return total, tally(losses, hits, counted)

    return objective


def draft_id_of_target(head: Head) -> mx.array:
    """Return [V] int32: the draft id of each of the target's tokens, or -1."""
    ids = head.draft_to_target
    found = mx.full((head.config.target_vocab_size,), -1, dtype=mx.int32)
    found[ids] = mx.arange(ids.size, dtype=mx.int32)
    mx.eval(found)  # compiled functions use it as a constant
    return found
