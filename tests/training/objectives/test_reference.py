"""The PyTorch reference of training, checked against second formulations and the runtime."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from mlx.utils import tree_flatten

pytest.importorskip("torch", reason="the oracle")

import torch
from torch import Tensor

from cases import broad
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.heads.config import HeadConfig
from reference_head import Growing, TorchHead, sees, torch_weights
from reference_losses import (
    Figures,
    Given,
    ahead,
    eagle1,
    eagle3,
    embed,
    given,
    hass,
    judged,
    medusa,
    score,
    unroll,
)
from training_cases import (
    EAGLE,
    FLAGS,
    drafting,
    eagle_head,
    medusa_head,
    random_batch,
    tiny_target,
)

pytestmark = pytest.mark.torch
STEPS = 3


def reference(head: Any) -> tuple[TorchHead, Given]:
    """The head in PyTorch and a batch for it."""
    target = tiny_target()
    batch = random_batch(head.config, target)
    weights = torch_weights(tree_flatten(head.parameters()))
    parts = target.embedding.weight, target.unembed.weight
    return TorchHead(head.config, weights), given(batch, *parts)


def chain_states(head: TorchHead, g: Given, row: int, start: int, at: int) -> list[Tensor]:
    """The states [h] of the chain that begins at `at` of the text that begins at `start`."""
    past, states = Growing(), list[Tensor]()
    tokens = g.tokens[row : row + 1]
    hidden = head.fuse(g.taps[row : row + 1, start : at + 1])
    embedded = embed(head, g, tokens[:, start + 1 : at + 2])
    positions = torch.arange(at + 1 - start)  # from the text's own beginning
    for step in range(STEPS):
        out = head.step(hidden, embedded, past, positions)
        states.append(out.normed[0, -1])
        hidden = out.feedback[:, -1:]
        embedded = embed(head, g, tokens[:, at + 2 + step : at + 3 + step])
        positions = positions[-1:] + 1
        if embedded.shape[1] == 0:
            break
    return states


def starts(g: Given) -> list[tuple[int, int, int]]:
    """Row, beginning of the text, and place of every token with a token of its text after it."""
    found = []
    for row, ids in enumerate(g.texts.tolist()):
        for at in range(len(ids) - 1):
            if ids[at] and ids[at + 1] == ids[at]:
                found.append((row, ids.index(ids[at]), at))
    return found


ALL_FLAGS = [*FLAGS[:6:2], *(broad(flags) for flags in (*FLAGS[1:6:2], *FLAGS[6:]))]


@pytest.mark.parametrize("flags", ALL_FLAGS, ids=lambda flags: "+".join(flags) or "plain")
def test_a_step_over_packed_rows_is_what_each_chain_computes_in_a_cache_of_its_own(
    flags: dict[str, Any], head_config: HeadConfig
) -> None:
    head, g = reference(eagle_head(head_config, **flags))
    outputs = unroll(head, g, head.fuse(g.taps), STEPS, detach=False)
    n_compared = 0
    for row, start, at in starts(g):
        for step, state in enumerate(chain_states(head, g, row, start, at)):
            if at + 1 + step < g.tokens.shape[1]:
                assert torch.allclose(outputs[step].normed[row, at], state, rtol=0, atol=1e-10)
                n_compared += 1
    assert n_compared == 54


@pytest.mark.parametrize("flags", ALL_FLAGS, ids=lambda flags: "+".join(flags) or "plain")
def test_a_step_over_packed_rows_is_what_the_runtime_computes_in_drafting(
    flags: dict[str, Any], head_config: HeadConfig
) -> None:
    """Rows of a prefix are observed, then the head reads its own states with the true tokens."""
    ours, target = eagle_head(head_config, **flags), tiny_target()
    head, g = reference(ours)
    outputs = unroll(head, g, head.fuse(g.taps), STEPS, detach=False)
    batch = random_batch(ours.config, target)
    for row, start, at in [(0, 0, 4), (1, 2, 2), (1, 2, 9)]:
        drafter = EagleDrafter(ours, drafting(target))
        tokens = batch.tokens[row]
        drafter.observe(batch.taps[row, start : at + 1], tokens[start + 1 : at + 2])
        out = drafter._newest
        assert out is not None
        for step in range(STEPS):
            want = score(head, g, outputs[step].normed[row, at]).detach().numpy()
            found = np.array(drafter.unembed(out.normed))[0, 0]
            assert np.abs(found - want).max() < 1e-5 * np.abs(want).max()
            token = tokens[None, at + 2 + step : at + 3 + step]
            if step + 1 < STEPS:
                out = ours(out.feedback, drafter.embed(token), drafter.cache)


def passes_by_hand(head: TorchHead, g: Given, row: int, start: int, end: int) -> list[Tensor]:
    """Predicted features of a text by pass and place [K, L, h], one query after another.

    Every query is run alone, over all tokens of its text up to its own: the newest have the
    features that earlier passes predicted, the others the target's.
    """
    table = [g.taps[row, start:end]]  # by pass: the feature that stands at each token
    for newest in range(STEPS):
        predicted = [torch.zeros_like(table[0][0])]
        for at in range(end - start - 1):
            chain = min(newest, at)  # it begins with the text at the earliest
            features = table[0][: at + 1].clone()
            for back in range(chain):
                features[at - back] = table[newest - back][at - back]
            tokens = g.tokens[row : row + 1, start + 1 : start + at + 2]
            embedded = embed(head, g, tokens)
            places = torch.arange(at + 1)
            out = head.step(features[None], embedded, Growing(), places)
            predicted.append(out.normed[0, -1])
        table.append(torch.stack(predicted))
    return table[1:]


def test_passes_of_hass_are_those_that_place_every_predicted_feature_by_hand(
    head_config: HeadConfig,
) -> None:
    head, g = reference(eagle_head(head_config, **EAGLE))
    outputs = unroll(head, g, g.taps, STEPS, detach=True)
    table = passes_by_hand(head, g, 1, 2, 13)
    for step, out in enumerate(outputs):
        for at in range(step, 10):  # a query at `at` is the end of the draft from at - step
            found, want = out.normed[1, 2 + at - step], table[step][at + 1]
            assert torch.allclose(found, want, rtol=0, atol=1e-10)


def test_features_of_earlier_passes_are_constants_to_the_gradient(head_config: HeadConfig) -> None:
    """The gradient of the last pass is that of queries whose features were found beforehand."""
    head, g = reference(eagle_head(head_config, **EAGLE))
    names = [name for name in head.w if head.w[name].requires_grad]
    weights = [head.w[name] for name in names]
    place = 2 + 6 - 2
    found = unroll(head, g, g.taps, STEPS, detach=True)[2].normed[1, place]
    with torch.no_grad():
        features = [step.normed[1] for step in unroll(head, g, g.taps, 2, detach=True)]
    read = torch.stack([*g.taps[1, 2:7], features[0][place], features[1][place]])[None]
    embedded = embed(head, g, g.tokens[1:2, 3:10])
    want = head.step(read, embedded, Growing(), torch.arange(7)).normed[0, -1]
    direction = torch.arange(want.shape[0]).double().cos()
    gradients = [torch.autograd.grad((x * direction).sum(), weights) for x in (found, want)]
    for name, one, other in zip(names, *gradients, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10), name


Objective = Callable[[TorchHead, Given], Figures]
OBJECTIVES: list[tuple[str, Objective]] = [
    ("eagle3", lambda head, g: eagle3(head, g, STEPS, 0.8)),
    ("eagle", lambda head, g: eagle1(head, g, 0.1 * torch.ones_like(g.taps).cumsum(-1).sin())),
    ("medusa", lambda head, g: medusa(head.config, head.w, g, 0.8)),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("name", "objective"), OBJECTIVES, ids=[name for name, _ in OBJECTIVES])
def test_gradients_of_the_reference_are_those_of_finite_differences(
    name: str, objective: Objective, head_config: HeadConfig
) -> None:
    flags = {"eagle3": FLAGS[1] | FLAGS[3], "eagle": EAGLE}
    ours = medusa_head() if name == "medusa" else eagle_head(head_config, **flags[name])
    head, g = reference(ours)
    weights = {n: w for n, w in head.w.items() if w.requires_grad}
    gradients = torch.autograd.grad(objective(head, g).total, list(weights.values()))
    generator = torch.Generator().manual_seed(4)
    for weight, gradient in zip(weights.values(), gradients, strict=True):
        direction = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        ends = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                weight += step * direction
                ends.append(objective(head, g).total.item())
        with torch.no_grad():
            weight += 1e-5 * direction
        slope = (gradient * direction).sum().item()
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-6, abs=1e-9)


def test_a_query_sees_its_own_text_and_the_chain_that_began_where_it_did() -> None:
    texts = torch.tensor([[1, 1, 2, 2]])
    assert sees(texts, 1, None)[0].int().tolist() == [
        [1, 0, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0, 0, 1, 0],
        [0, 0, 1, 1, 0, 0, 0, 1],
    ]
    assert sees(texts, 1, 2)[0, 3].int().tolist() == [0, 0, 0, 1, 0, 0, 0, 1]
    assert sees(texts, 2, 2)[0, 3].int().tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]


def test_a_step_is_judged_where_all_its_tokens_are_of_one_text_and_the_last_is_trained() -> None:
    texts = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 0, 0, 0]])
    trained = torch.tensor([[True, True, False, True, True, True, True, True, True, True]])
    blank = torch.zeros(0)
    g = Given(blank, blank, blank, blank, texts, trained, blank, blank)
    assert judged(g, 0)[0].int().tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 0]
    assert judged(g, 1)[0].int().tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert ahead(trained, 8)[0].int().tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_a_text_learns_the_same_alone_and_packed_with_others(head_config: HeadConfig) -> None:
    head, g = reference(eagle_head(head_config))
    whole = eagle3(head, g, STEPS, 0.8)
    sums = torch.zeros(STEPS, dtype=torch.float64)
    for row, ids in enumerate(g.texts.tolist()):
        for text in set(ids) - {0}:
            start, end = ids.index(text), len(ids) - ids[::-1].index(text)
            alone = Given(*(a[row : row + 1, start:end] for a in g[:6]), *g[6:])
            sums += eagle3(head, alone, STEPS, 0.8).losses.detach() * (end - start)
    assert torch.allclose(whole.losses.detach() * g.tokens.numel(), sums, rtol=0, atol=1e-10)


def test_the_distillation_term_of_hass_adds_the_ten_likeliest_tokens(
    head_config: HeadConfig,
) -> None:
    head, g = reference(eagle_head(head_config, **EAGLE))
    plain, more = (hass(head, g, STEPS, 0.8, weight).losses for weight in (0.0, 1.0))
    out = unroll(head, g, g.taps, 1, detach=True)[0]
    p = (ahead(g.final, 1) @ g.unembedding.T).softmax(-1)
    p = torch.where(p >= p.sort(-1).values[..., -10:-9], p, 0.0)
    terms = -(p * (out.normed @ g.unembedding.T).log_softmax(-1)).sum(-1)
    want = terms[judged(g, 0)].sum() / g.tokens.numel()
    assert (more - plain)[0].item() == pytest.approx(want.item(), rel=1e-10)
