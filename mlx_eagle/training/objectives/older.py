"""The objectives of EAGLE-3's ancestors: EAGLE-1, HASS and Medusa-1, on the same batches.

EAGLE-1 (arXiv 2401.15077, section 3.2) foresees the target's next final state, and through its
output layer the next token. HASS (2408.15766, section 3) trains the same head on states that it
made itself. Medusa-1 (2401.10774, section 2.2.1) foresees each depth from the last state alone.
All of them compare logits over the target's whole vocabulary, a block of rows at a time.
"""

import mlx.core as mx

from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.load import Head
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.heads.unroll import UnrolledCache
from mlx_eagle.training.batch import Batch, Figures, Objective
from mlx_eagle.training.features.compute import LogitMap
from mlx_eagle.training.objectives.blocks import BlockLoss, loss_in_blocks
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
    token_loss = _token_loss(logits, n_top=TOP_TOKENS if is_hass else 0)

    def objective(batch: Batch) -> tuple[mx.array, Figures]:
        embeddings = mx.stop_gradient(embed(batch.tokens).astype(batch.final.dtype))
        cache, hidden = UnrolledCache.of(head, batch.texts), batch.final
        if options.noise and not is_hass:
            noise = mx.random.uniform(-options.noise, options.noise, hidden.shape)
            hidden = hidden + noise.astype(hidden.dtype)
        losses, hits, counted = list[mx.array](), list[mx.array](), list[mx.array]()
        for i in range(steps):
            out = head(hidden, ahead(embeddings, 1 + i), cache)
            counts, wanted = counted_starts(batch, i), ahead(batch.final, 1 + i)
            weights = counts.astype(mx.float32) / batch.tokens.size
            own = [head.lm_head.weight] if head.config.own_lm_head else []
            after = losses[-1] if losses else batch.final
            of_tokens, likeliest = loss_in_blocks(
                token_loss, out.feedback, own, [wanted, weights], after
            )
            losses.append(smooth_l1(out.feedback, wanted, weights) + of_tokens)
            hits.append((counts & (likeliest == ahead(batch.choices, 1 + i))).sum())
            counted.append(counts.sum())
            hidden = mx.stop_gradient(out.feedback)
        total = added(options.step_decay**i * loss for i, loss in enumerate(losses))
        return total, tally(mx.stack(losses), hits, counted)

    return objective


def medusa_objective(head: Head, teacher: Teacher, options: HeadOptions) -> Objective:
    """Return the objective of Medusa-1: depth i foresees the token i + 2 on, as the text has it."""
    assert isinstance(head, MedusaHead), "only Medusa heads foresee all depths at once"
    draft_ids, token_loss = draft_id_of_target(head), _depth_loss(teacher.logits_of())

    def objective(batch: Batch) -> tuple[mx.array, Figures]:
        losses, hits, counted = list[mx.array](), list[mx.array](), list[mx.array]()
        for i, depth in enumerate(head.depths):
            counts, truth = counted_starts(batch, i), ahead(draft_ids[batch.tokens], 2 + i)
            weights = (counts & (truth >= 0)).astype(mx.float32) / batch.tokens.size
            own = [depth.lm_head.weight] if head.config.own_lm_heads else []
            after = losses[-1] if losses else batch.final
            loss, likeliest = loss_in_blocks(
                token_loss, depth.hidden(batch.final), own, [mx.maximum(truth, 0), weights], after
            )
            losses.append(loss)
            choice = ahead(draft_ids[batch.choices], 1 + i)
            hits.append((counts & (likeliest == choice)).sum())
            counted.append(counts.sum())
        total = added(options.step_decay**i * loss for i, loss in enumerate(losses))
        return total, tally(mx.stack(losses), hits, counted)

    return objective


def _token_loss(logits: LogitMap, *, n_top: int) -> BlockLoss:
    """Return the loss of drafted tokens of EAGLE-1, or with the likeliest ones besides of HASS.

    Args:
        logits: of the target's final states; of the head's states too, unless it has an output
            layer of its own, whose weight is then given to the loss.
        n_top: of how many tokens the target's probabilities count once more.
    """

    def loss(hidden: mx.array, *more: mx.array) -> tuple[mx.array, mx.array]:
        *own, wanted, weights = more
        drafted = _log_softmax(hidden @ own[0].T if own else logits(hidden))
        taught = mx.softmax(logits(wanted).astype(mx.float32), axis=-1)
        tokens = TOKEN_WEIGHT * _cross_entropy(taught, drafted)
        if n_top:
            tokens = tokens + _cross_entropy(_likeliest(taught, n_top), drafted)
        return (weights * tokens).sum(), drafted.argmax(-1)

    return loss


def _depth_loss(logits: LogitMap) -> BlockLoss:
    """Return the loss of a depth of Medusa heads: the cross-entropy of the text's own tokens.

    Args:
        logits: of the depth's states, unless it has an output layer of its own, whose weight is
            then given to the loss.
    """

    def loss(hidden: mx.array, *more: mx.array) -> tuple[mx.array, mx.array]:
        *own, truth, weights = more
        drafted = _log_softmax(hidden @ own[0].T if own else logits(hidden))
        likelihood = mx.take_along_axis(drafted, truth[..., None], axis=-1)[..., 0]
        return -(weights * likelihood).sum(), drafted.argmax(-1)

    return loss


def _log_softmax(logits: mx.array) -> mx.array:
    """Return log-probabilities [.., V] float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def _cross_entropy(taught: mx.array, drafted: mx.array) -> mx.array:
    """Return [..] for probabilities `taught` and log-probabilities `drafted`, both [.., V]."""
    return -(taught * drafted).sum(-1)


def _likeliest(probabilities: mx.array, n: int) -> mx.array:
    """Return probabilities [.., V] with zeros for all but the n likeliest."""
    top = mx.topk(probabilities, min(n, probabilities.shape[-1]), axis=-1)
    return mx.where(probabilities >= top.min(-1, keepdims=True), probabilities, 0)
