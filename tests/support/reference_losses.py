"""The losses of draft heads in plain PyTorch, written from the papers and naive throughout.

Row t of a head pairs what the target computed at token t with the embedding of token t + 1. Step i
starts at every position t of a row, reads token t + 1 + i and predicts token t + 2 + i; its teacher
is the target at position t + 1 + i. A step is judged where the tokens t .. t + 2 + i are all of one
text and t + 2 + i is trained; it adds to the loss where, besides, what is to be learnt is in the
draft vocabulary. All losses are sums divided by the B * L positions of the batch.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mlx_eagle.heads.config import MedusaConfig
from reference_head import Past, Step, TorchHead, Weights

TOP = 10  # tokens of the teacher in the distillation term of HASS
CROSS_ENTROPY = 0.1  # its weight in EAGLE-1, where that of the features is 1


class Given(NamedTuple):
    """A batch as tensors, and the target's table and output layer, [V, D] each."""

    tokens: Tensor
    taps: Tensor
    final: Tensor
    choices: Tensor
    texts: Tensor
    trained: Tensor
    embedding: Tensor
    unembedding: Tensor


class Figures(NamedTuple):
    """What an objective gives: `total` is what is minimised, the rest is [K], for each step.

    `hits` of the `counted` positions have the target's choice as the head's likeliest token.
    """

    total: Tensor
    losses: Tensor
    hits: Tensor
    counted: Tensor


def given(batch: Any, embedding: Any, unembedding: Any) -> Given:
    """Return an MLX `Batch` and the target's two matrices as tensors, floats as float64."""
    arrays = (torch.tensor(np.array(a)) for a in (*batch, embedding, unembedding))
    return Given(*(a.double() if a.is_floating_point() else a for a in arrays))


def ahead(x: Tensor, n: int) -> Tensor:
    """Return x [B, L, ..] n tokens further on; zeros where the row has ended."""
    ended = torch.zeros_like(x[:, : min(n, x.shape[1])])
    return torch.cat([x[:, n:], ended], 1)


def judged(g: Given, step: int) -> Tensor:
    """Return [B, L] bool: where a step starts whose tokens are of one text, the last trained."""
    ok = g.texts != 0
    for n in range(1, step + 3):
        ok = ok & (ahead(g.texts, n) == g.texts)
    return ok & ahead(g.trained, step + 2)


class _Judge:
    """Collects the figures of one objective, step by step."""

    def __init__(self, g: Given, draft_ids: Tensor) -> None:
        self.given, self.draft_ids = g, draft_ids.long()
        self.losses: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.counted: list[Tensor] = []

    def add(self, step: int, logits: Tensor, terms: Tensor, learnt: Tensor) -> None:
        """Note a step.

        Args:
            step: its number.
            logits: [B, L, W] of the head.
            terms: [B, L], what each start adds to the loss.
            learnt: [B, L] token whose presence in the draft vocabulary lets a term count.
        """
        where = judged(self.given, step)
        counts = where & torch.isin(learnt, self.draft_ids)
        likeliest = self.draft_ids[logits.argmax(-1)]
        right = likeliest == ahead(self.given.choices, step + 1)
        self.losses.append(torch.where(counts, terms, 0.0).sum() / terms.numel())
        self.hits.append((where & right).sum())
        self.counted.append(where.sum())

    def figures(self, decay: float) -> Figures:
        losses = torch.stack(self.losses)
        weights = decay ** torch.arange(len(self.losses), dtype=losses.dtype)
        total = (weights * losses).sum()
        return Figures(total, losses, torch.stack(self.hits), torch.stack(self.counted))


def embed(head: TorchHead, g: Given, tokens: Tensor) -> Tensor:
    """Embed tokens with the head's own table, or with the target's."""
    return head.w.get("embed_tokens.weight", g.embedding)[tokens.long()]


def score(head: TorchHead, g: Given, normed: Tensor) -> Tensor:
    """Return logits [.., W] by the head's own output layer, or by the target's."""
    ids = head.w["draft_to_target"].long()
    return normed @ head.w.get("lm_head.weight", g.unembedding[ids]).T


def unroll(head: TorchHead, g: Given, hidden: Tensor, steps: int, detach: bool) -> list[Step]:
    """Run some steps from every position of every row.

    Args:
        head: the head.
        g: the batch.
        hidden: [B, L, h], what the first step reads.
        steps: how many, K.
        detach: each step reads the state of the one before as a constant.
    """
    past, outputs = Past(g.texts), list[Step]()
    for i in range(steps):
        positions = torch.arange(g.tokens.shape[1]) + i
        out = head.step(hidden, embed(head, g, ahead(g.tokens, 1 + i)), past, positions)
        hidden = out.feedback.detach() if detach else out.feedback
        outputs.append(out)
    return outputs


def eagle3(head: TorchHead, g: Given, steps: int, decay: float) -> Figures:
    """Training-time test (arXiv 2503.01840, section 3.2): K steps, no loss on features.

    A step's loss is the cross-entropy with the target's distribution over the draft vocabulary,
    renormalised there; it counts where the target's own choice is in the draft vocabulary.
    """
    ids = head.w["draft_to_target"].long()
    judge = _Judge(g, ids)
    for i, out in enumerate(unroll(head, g, head.fuse(g.taps), steps, detach=False)):
        logits = score(head, g, out.normed)
        teacher = (ahead(g.final, i + 1) @ g.unembedding[ids].T).softmax(-1)
        terms = -(teacher * logits.log_softmax(-1)).sum(-1)
        judge.add(i, logits, terms, ahead(g.choices, i + 1))
    return judge.figures(decay)


def _eagle_terms(logits: Tensor, out: Step, final: Tensor, teacher: Tensor) -> Tensor:
    """Return the loss of EAGLE-1 (arXiv 2401.15077, section 4.2) at every position, [B, L]."""
    features = functional.smooth_l1_loss(out.normed, final, reduction="none", beta=1.0).mean(-1)
    return features - CROSS_ENTROPY * (teacher * logits.log_softmax(-1)).sum(-1)


def hass(
    head: TorchHead,
    g: Given,
    steps: int,
    decay: float,
    top_weight: float,
    noise: Tensor | None = None,
) -> Figures:
    """K passes with harmonised context (HASS, arXiv 2408.15766, section 3.2).

    How the text is read: pass j (from 1) queries with the features that pass j - 1 predicted; the
    j - 1 newest keys and values come from the features of the passes j - 1 (newest), .., 1, all
    older ones from the target's. So a query at position s of pass j stands at the end of a draft
    that began at t = s - (j - 1): it is step i = j - 1 of the unrolling from t, and is indexed by t
    here. Where the draft would have begun before the text there is no such feature, and the query
    does not count (published code puts the target's first feature there). Features of earlier
    passes are constants; the weights that make keys and values of them get gradients. The
    passes' losses, weighted by `decay` ** i, are added, where published code makes an update after
    each pass. A pass's loss is EAGLE-1's, and `top_weight` times the cross-entropy over the
    teacher's ten likeliest tokens, with probabilities that are not renormalised.

    Args:
        head: an EAGLE-1 head, whose feature is its output.
        g: the batch; its taps are the target's final states.
        steps: passes K; with one pass and no `top_weight` it is EAGLE-1.
        decay: weight of a pass, relative to the one before.
        top_weight: weight of the distillation term.
        noise: [B, L, D], added to the features that the first pass reads.
    """
    ids = head.w["draft_to_target"].long()
    judge = _Judge(g, ids)
    hidden = g.taps if noise is None else g.taps + noise
    for i, out in enumerate(unroll(head, g, hidden, steps, detach=True)):
        final = ahead(g.final, i + 1)
        logits = score(head, g, out.normed)
        teacher = (final @ g.unembedding[ids].T).softmax(-1)
        terms = _eagle_terms(logits, out, final, teacher)
        top = teacher.topk(min(TOP, teacher.shape[-1]), -1)
        log_probs = logits.log_softmax(-1).gather(-1, top.indices)
        terms = terms - top_weight * (top.values * log_probs).sum(-1)
        judge.add(i, logits, terms, ahead(g.choices, i + 1))
    return judge.figures(decay)


def eagle1(head: TorchHead, g: Given, noise: Tensor | None = None) -> Figures:
    """One step from true features: SmoothL1 on the features and 0.1 of the cross-entropy."""
    return hass(head, g, 1, 1.0, 0.0, noise)


def medusa(config: MedusaConfig, w: Weights, g: Given, decay: float) -> Figures:
    """Medusa-1 (arXiv 2401.10774, section 2.2.1): head i learns the text's own token t + 2 + i.

    A term counts where that token, which is the label, is in the draft vocabulary. Hits are as
    elsewhere: the target's choice is what counts when drafts are verified.
    """
    ids = w["draft_to_target"].long()
    judge = _Judge(g, ids)
    for i in range(config.num_heads):
        x = g.taps
        for block in range(config.num_layers):
            at = f"depths.{i}.blocks.{block}.linear"
            out = x @ w[f"{at}.weight"].T
            x = x + functional.silu(out + w[f"{at}.bias"] if f"{at}.bias" in w else out)
        logits = x @ w.get(f"depths.{i}.lm_head.weight", g.unembedding[ids]).T
        label = ahead(g.tokens, i + 2)
        is_label = label[..., None] == ids  # [B, L, W]; none where it is not in the vocabulary
        terms = -torch.where(is_label, logits.log_softmax(-1), 0.0).sum(-1)
        judge.add(i, logits, terms, label)
    return judge.figures(decay)
