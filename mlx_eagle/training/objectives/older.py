"""The objectives of EAGLE-3's ancestors: EAGLE-1, HASS and Medusa-1, on the same batches.

EAGLE-1 (arXiv 2401.15077, section 3.2) foresees the target's next final state, and through its
output layer the next token. HASS (2408.15766, section 3) trains the same head on states that it
made itself. Medusa-1 (2401.10774, section 2.2.1) foresees each depth from the last state alone.
"""

import mlx.core as mx

from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import Head
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.heads.unroll import UnrolledCache
from mlx_eagle.training.batch import Batch, Figures, Objective
from mlx_eagle.training.objectives.losses import added, smooth_l1
from mlx_eagle.training.objectives.positions import ahead, counted_starts, draft_id_of_target, tally
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import HeadOptions

TOKEN_WEIGHT = 0.1  # of EAGLE-1's loss of tokens beside that of features
TOP_TOKENS = 10  # of the target that HASS distils besides


def eagle_objective(
    head: EagleHead, teacher: Teacher, options: HeadOptions, steps: int
) -> Objective:
    """Return the objective of EAGLE-1, which is one step with noise, or of HASS.

    A pass of HASS reads the states that the pass before made, and attends to the keys of those
    before: a start and its own steps, as in training-time test. No pass is trained through
    another's states.
    """
    logits, is_hass = teacher.logits_of(), options.algorithm == "hass"
    embed = head.embed_tokens if head.config.own_embedding else teacher.embedding
    unembed = head.lm_head if head.config.own_lm_head else logits

    def objective(batch: Batch) -> tuple[mx.array, Figures]:
        embeddings = mx.stop_gradient(embed(batch.tokens).astype(batch.final.dtype))
        cache, hidden = UnrolledCache.of(head, batch.texts), batch.final
        if options.noise and not is_hass:
            noise = mx.random.uniform(-options.noise, options.noise, hidden.shape)
            hidden = hidden + noise.astype(hidden.dtype)
        losses, hits, counted = [], [], []
        for i in range(steps):
            out = head(hidden, ahead(embeddings, 1 + i), cache)
            counts, wanted = counted_starts(batch, i), ahead(batch.final, 1 + i)
            weights = counts.astype(mx.float32) / batch.tokens.size
            drafted = _log_softmax(unembed(out.feedback))
            taught = mx.softmax(logits(wanted).astype(mx.float32), axis=-1)
            tokens = TOKEN_WEIGHT * _cross_entropy(taught, drafted)
            if is_hass:
                tokens = tokens + _cross_entropy(_likeliest(taught), drafted)
            losses.append(smooth_l1(out.feedback, wanted, weights) + (weights * tokens).sum())
            hits.append((counts & (drafted.argmax(-1) == ahead(batch.choices, 1 + i))).sum())
            counted.append(counts.sum())
            hidden = mx.stop_gradient(out.feedback)
        total = added(options.step_decay**i * loss for i, loss in enumerate(losses))
        return total, tally(mx.stack(losses), hits, counted)

    return objective


def medusa_objective(head: Head, teacher: Teacher, options: HeadOptions) -> Objective:
    """Return the objective of Medusa-1: depth i foresees the token i + 2 on, as the text has it."""
    assert isinstance(head, MedusaHead), "only Medusa heads foresee all depths at once"
    unembed, draft_ids = teacher.logits_of(), draft_id_of_target(head)

    def objective(batch: Batch) -> tuple[mx.array, Figures]:
        losses, hits, counted = [], [], []
        for i, depth in enumerate(head.depths):
            drafted = _log_softmax(depth(batch.final, unembed))  # [B, L, V]
            counts, truth = counted_starts(batch, i), ahead(draft_ids[batch.tokens], 2 + i)
            ids = mx.maximum(truth, 0)[..., None]
            likelihood = mx.take_along_axis(drafted, ids, axis=-1)[..., 0]
            losses.append(-(counts * (truth >= 0) * likelihood).sum() / batch.tokens.size)
            choice = ahead(draft_ids[batch.choices], 1 + i)
            hits.append((counts & (drafted.argmax(-1) == choice)).sum())
            counted.append(counts.sum())
        total = added(options.step_decay**i * loss for i, loss in enumerate(losses))
        return total, tally(mx.stack(losses), hits, counted)

    return objective


def _log_softmax(logits: mx.array) -> mx.array:
    """Return log-probabilities [.., V] float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _cross_entropy(taught: mx.array, drafted: mx.array) -> mx.array:
    """Return [..] for probabilities `taught` and log-probabilities `drafted`, both [.., V]."""
    return -(taught * drafted).sum(-1)


def _likeliest(probabilities: mx.array) -> mx.array:
    """Return probabilities [.., V] with zeros for all but the TOP_TOKENS likeliest."""
    top = mx.topk(probabilities, min(TOP_TOKENS, probabilities.shape[-1]), axis=-1)
    return mx.where(probabilities >= top.min(-1, keepdims=True), probabilities, 0)
