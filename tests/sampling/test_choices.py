"""Sampled, processed and constrained text: what plain decoding gives, and what mlx-lm gives."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm import sample_utils
from mlx_lm.generate import generate_step

from cases import broad
from doubles import make_session
from mlx_eagle.decoding.accept import accept
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.sampling.token_selector import TokenSelector
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.session.selector import make_processors, make_sampler
from mlx_eagle.session.session import Session
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, DraftTree, TreeShape

# None is the planner, whose trees follow the clock.
POLICIES = [None, TreeShape.chain(1), TreeShape.chain(4), TreeShape(3, 3, 7), TreeShape(4, 4, 11)]

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["class", "function", "module"]},
    },
    "required": ["name", "size", "kind"],
    "additionalProperties": False,
}


def forbid_repeats(tokens: mx.array, logits: mx.array) -> mx.array:
    """A caller's own processor: no token may follow the one that it followed the last time."""
    found = tokens[:-1] == tokens[-1]
    penalty = mx.zeros((logits.shape[-1],)).at[tokens[1:]].add(mx.where(found, 50.0, 0.0))
    return logits - penalty


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20, "min_p": 0.02},
    {"repetition_penalty": 1.3},
    {"temperature": 0.8, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"temperature": 0.9, "logit_bias": {5: 4.0, 300: -6.0}, "repetition_context_size": 40},
    {"logits_processors": [forbid_repeats]},
    {"temperature": 0.8, "json_schema": SCHEMA, "max_tokens": 16},
    {"regex": r"The [a-z ]{5,30}\.", "repetition_penalty": 1.2},
]


def combination(index: int, prompts: list[str]) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """One of the 200 (prompt, seed, setting): the options, and the chat messages to answer."""
    setting = {"max_tokens": 10} | SETTINGS[index % len(SETTINGS)] | {"seed": 1000 + index}
    return [{"role": "user", "content": prompts[index % len(prompts)]}], setting


@pytest.mark.parametrize("block", [*range(4), *map(broad, range(4, 100))])
def test_speculation_does_not_change_a_token_whatever_chooses_it(
    block: int, turning: Any, demo: Any, prompts: list[str], is_quick: bool
) -> None:
    """Every setting with one policy, or with all where asked.

    Of JSON the demo pair's head foresees more than one that knows words alone.
    """
    accepted = 0
    for index in (2 * block, 2 * block + 1):
        messages, options = combination(index, prompts)
        engine = demo if "json_schema" in options else turning
        want = engine.generate(messages, speculate=False, **options)
        turned = [*POLICIES[index % len(POLICIES) :], *POLICIES]
        n_tried = 1 if is_quick else len(POLICIES)
        for policy in turned[:n_tried]:
            got = engine.generate(messages, tree=policy, **options)
            assert got.tokens == want.tokens, (index, options, policy)
            assert (got.text, got.finish_reason) == (want.text, want.finish_reason)
            accepted += got.stats.accepted
    least = 1 if is_quick else 10
    assert accepted > least, "next to nothing was accepted; the test shows little"


STOCK: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temp": 0.0}, {"repetition_penalty": 1.4, "repetition_context_size": 30}),
    ({"temp": 0.8}, {}),
    ({"temp": 1.1, "top_p": 0.9, "top_k": 40}, {"presence_penalty": 0.5}),
    ({"temp": 0.9, "min_p": 0.05}, {"frequency_penalty": 0.3, "logit_bias": {7: 3.0}}),
    ({"temp": 0.8, "xtc_probability": 0.5, "xtc_threshold": 0.1}, {}),
]


@pytest.mark.bitwise
@pytest.mark.parametrize(("sampling", "penalties"), STOCK)
def test_samplers_and_processors_of_mlx_lm_choose_the_tokens_that_they_choose_there(
    sampling: dict[str, Any],
    penalties: dict[str, Any],
    turning: Any,
    prompts: list[str],
    is_quick: bool,
) -> None:
    """mlx-lm's own loop after the same mx.random.seed is the oracle, log-probabilities too.

    Every sampler with a shape in turn, or with all of them.
    """
    messages = [{"role": "user", "content": prompts[3]}]
    ids = turning.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    options = {"sampler": sample_utils.make_sampler(**sampling)}
    options |= {"logits_processors": sample_utils.make_logits_processors(**penalties)}
    mx.random.seed(77)
    want = list(generate_step(mx.array(ids), turning.target.model, max_tokens=14, **options))
    options |= {"max_tokens": 14, "ignore_eos": True, "logprobs": True}
    shapes = POLICIES[1:]
    for policy in (shapes * 2)[STOCK.index((sampling, penalties)) :][:1] if is_quick else shapes:
        mx.random.seed(77)
        got = list(turning.stream_generate(ids, tree=policy, **options))
        assert [r.token for r in got] == [int(token) for token, _ in want], policy
        for response, (token, logprobs) in zip(got, want, strict=True):
            assert mx.array_equal(response.logprobs, logprobs)
            assert response.logprob == logprobs[token].item()
            top = response.top_logprobs(5)
            assert [p for _, p in top] == sorted(logprobs.tolist(), reverse=True)[:5]


VOCABULARY = 12
PROMPT = [3, 7, 1, 7]


@pytest.fixture(scope="module")
def twelve(
    tiny_target: Callable[..., nn.Module], head_config: HeadConfig
) -> tuple[nn.Module, Session]:
    """A random target and head of 12 tokens."""
    model = tiny_target("llama", vocab_size=VOCABULARY)
    sizes = {"hidden_size": 64, "target_hidden_size": 64}
    words = {"target_vocab_size": VOCABULARY, "draft_vocab_size": VOCABULARY}
    mx.random.seed(4)
    head = EagleHead(replace(head_config, **sizes, **words))
    target = Target(model, taps=head.config.taps)
    return model, make_session(target, partial(EagleDrafter, head, target))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def tempered(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    return softmax(logits / 0.7)


def nucleus(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    """The likeliest tokens whose probabilities before them are below 0.8, at temperature 1.5."""
    p = softmax(logits)
    order = np.argsort(-p)
    kept = order[np.cumsum(p[order]) - p[order] < 0.8]
    masked = np.full_like(p, -np.inf)
    masked[kept] = logits[kept]
    return softmax(masked / 1.5)


def penalised(logits: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Repeated tokens divided or multiplied by 1.8, then 0.6 off for every occurrence."""
    changed = logits.copy()
    for token in set(tokens):
        changed[token] = changed[token] * 1.8 if changed[token] < 0 else changed[token] / 1.8
    for token in tokens:
        changed[token] -= 0.6
    return softmax(changed)


Text = tuple[int, ...]
Law = Callable[[np.ndarray, list[int]], np.ndarray]
LAWS: list[Any] = [
    broad(tempered, {"temperature": 0.7}),
    (nucleus, {"temperature": 1.5, "top_p": 0.8}),
    broad(penalised, {"temperature": 1.0, "repetition_penalty": 1.8, "frequency_penalty": 0.6}),
]


def enumerate_texts(model: nn.Module, law: Law) -> tuple[dict[Text, float], dict[Text, mx.array]]:
    """All texts of three tokens with their probabilities, and the logits [V] after all shorter.

    The probabilities come from the model's logits by NumPy, every prefix run on its own.
    """
    expected, after = {(): 1.0}, dict[Text, mx.array]()
    for _ in range(3):
        grown: dict[Text, float] = {}
        logits = model(mx.array([[*PROMPT, *text] for text in expected]))[:, -1]
        for (text, p), row in zip(expected.items(), logits, strict=True):
            after[text] = row
            probs = law(np.array(row).astype(np.float64), [*PROMPT, *text])
            grown |= {(*text, token): p * q for token, q in enumerate(probs)}
        expected = grown
    assert math.isclose(sum(expected.values()), 1.0, rel_tol=1e-9)
    return expected, after


def draw_from_selector(
    after: dict[Text, mx.array], options: dict[str, Any], seed: int
) -> tuple[Text, int]:
    """Three tokens, chosen in rounds after the nodes of random trees, and how many were drafted."""
    chosen = GenerationOptions(seed=seed, **options)
    selector = TokenSelector(make_sampler(chosen), make_processors(chosen), None, PROMPT[:-1])
    source, text, n_accepted = random.Random(seed), (), 0
    nothing = mx.zeros((VOCABULARY,))
    while len(text) < 3:
        parents = [0, 0, 0, 0, 0, 1, 1]
        tokens = [[*PROMPT, *text][-1], *source.sample(range(VOCABULARY), 4)]
        tokens += source.sample(range(VOCABULARY), 2)
        prefixes: list[Text] = [text]
        for node in range(1, len(tokens)):
            prefixes.append((*prefixes[parents[node]], tokens[node]))
        tree = DraftTree.static(mx.array(tokens), parents)
        logits = mx.stack([after.get(prefix, nothing) for prefix in prefixes])
        found = selector(logits, tree, len(PROMPT) - 1 + len(text))
        path, token = accept(tokens, parents, found.tokens.tolist())
        selector.commit(tree, path)
        text = (*text, *(tokens[node] for node in path[1:]), token)
        n_accepted += len(path) - 1
    return text[:3], n_accepted


def draw_from_session(session: Session, options: dict[str, Any], seed: int) -> tuple[Text, int]:
    """Three tokens of an answer, and how many of them were drafted."""
    shape = TreeShape(2, 3, 6)
    stream = session.stream_generate(PROMPT, max_tokens=3, seed=seed, tree=shape, **options)
    responses = list(stream)
    return tuple(r.token for r in responses), responses[-1].n_accepted


@pytest.mark.parametrize("whole_answers", [False, broad(True)])
@pytest.mark.parametrize(("law", "options"), LAWS)
def test_texts_of_three_tokens_follow_the_distribution_that_is_enumerated(
    law: Law,
    options: dict[str, Any],
    whole_answers: bool,
    twelve: tuple[nn.Module, Session],
    is_quick: bool,
) -> None:
    """Chi-square over all 1728 texts, of which those that are seldom drawn count together.

    The limit is exceeded once in 30,000 fair trials.
    """
    model, session = twelve
    expected, after = enumerate_texts(model, law)
    draw = partial(draw_from_session, session) if whole_answers else None
    draw = draw or partial(draw_from_selector, after)
    n, accepted = 400 if is_quick else 1500, 0
    counts: Counter[Text] = Counter()
    for seed in range(n):
        text, n_accepted = draw(options, seed)
        counts[text] += 1
        accepted += n_accepted
    assert accepted > n / 10, "nearly all drafts were wrong; the test shows nothing about trees"
    pairs, found, want = list[tuple[int, float]](), 0, 0.0
    for text, p in expected.items():  # texts that begin alike are neighbours
        found, want = found + counts[text], want + p * n
        if want >= 5:
            pairs, found, want = [*pairs, (found, want)], 0, 0.0
    pairs[-1] = (pairs[-1][0] + found, pairs[-1][1] + want)
    assert len(pairs) > 30
    statistic = sum((found - want) ** 2 / want for found, want in pairs)
    freedom = len(pairs) - 1
    # Wilson and Hilferty: the cube root of chi-square is nearly normal; four deviations.
    limit = freedom * (1 - 2 / (9 * freedom) + 4 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit
    impossible = [text for text, p in expected.items() if p < 1e-12]
    assert not any(counts[text] for text in itertools.islice(impossible, 2000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"presence_penalty": float("nan")}, "presence_penalty is nan"),
        ({"logit_bias": {5: float("inf")}}, "logit_bias of token 5 is inf"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1e-40}, "temperature is 1e-40"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5; it must be a whole number"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"stop": [5]}, r"stop is \[5\]"),
        ({"tree": "chain"}, "tree is 'chain'; give a TreeShape"),
        ({"logits_processors": forbid_repeats}, "must be a list of functions"),
        ({"regex": "a", "ignore_eos": True}, "ignore_eos was given with a grammar"),
        ({"sampler": sample_utils.make_sampler(0.5), "top_p": 0.7}, "sampler and top_p"),
        ({"json_schema": {}, "regex": "a"}, "json_schema and regex were both given"),
        (
            {"sampler": sample_utils.make_sampler(0.5), "temperature": 0.7},
            "sampler and temperature",
        ),
        ({"overflow": "ignore"}, "overflow is 'ignore'"),
        ({"presence_context_size": 0}, "presence_context_size is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(
    options: dict[str, Any], message: str, turning: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        turning.generate([1, 2], **options)


@pytest.mark.parametrize("token", [10**6, -1, "7", 4096])
def test_a_bias_for_a_token_that_is_none_is_refused(token: Any, turning: Any) -> None:
    with pytest.raises(EagleError, match="logit_bias names token"):
        turning.generate([1, 2], logit_bias={token: 5.0})


def test_none_stands_for_no_stop_strings_and_no_processors_as_in_mlx_lm(turning: Any) -> None:
    want = turning.generate([5, 6, 7], max_tokens=5).tokens
    assert (
        turning.generate([5, 6, 7], max_tokens=5, stop=None, logits_processors=None).tokens == want
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": lambda p: mx.array([4200])}, "chose a token that the target does not have"),
        ({"sampler": lambda p: mx.array([-1])}, "chose a token that the target does not have"),
        ({"sampler": lambda p: 7}, "the sampler returned int"),
        ({"sampler": lambda p: p[0]}, r"returned an array of shape \(4096,\)"),
        ({"logits_processors": [lambda t, x: x[0]]}, r"<lambda> returned .* \(4096,\)"),
        ({"logits_processors": [lambda t, x: None]}, "returned NoneType"),
        (
            {"logits_processors": [lambda t, x: mx.full(x.shape, -mx.inf)], "regex": "[ab]+"},
            "left no token that it allows",
        ),
    ],
)
@pytest.mark.parametrize("policy", [PLAIN, TreeShape(3, 3, 7)])
def test_functions_that_return_nonsense_are_named(
    options: dict[str, Any], message: str, policy: TreeShape, turning: Any
) -> None:
    with pytest.raises(EagleError, match=message):
        turning.generate([5, 6, 7], tree=policy, **options)


def test_mlxs_generator_goes_on_from_the_last_token_that_was_given(turning: Any) -> None:
    """What is drawn after an answer does not depend on how it was drafted."""
    sampler, drawn = sample_utils.make_sampler(0.9), set()
    for policy in (PLAIN, TreeShape.chain(4), TreeShape(4, 3, 8)):
        for n in (3, 8):
            mx.random.seed(3)
            turning.generate([5, 6, 7], max_tokens=n, ignore_eos=True, tree=policy, sampler=sampler)
            drawn.add((n, mx.random.uniform().item()))
    assert len(drawn) == 2


def test_log_probabilities_outlive_their_round_and_their_thread(turning: Any) -> None:
    """They are computed when they are handed over, and hold one row each."""
    from concurrent.futures import ThreadPoolExecutor

    options = {"max_tokens": 6, "logprobs": True, "tree": TreeShape(3, 3, 7)}
    responses = list(turning.stream_generate([5, 6, 7], **options))
    here = [(r.logprob, r.top_logprobs(3)) for r in responses]
    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(lambda: [(r.logprob, r.top_logprobs(3)) for r in responses]).result()
    assert here == there
    assert all(top[0][1] >= p for p, top in here)
    with pytest.raises(ValueError, match="n is -1"):
        responses[0].top_logprobs(-1)
    *_, last = turning.stream_generate([5, 6, 7], regex="a?", logprobs=True)
    assert len(last.top_logprobs(50)) < 50, "what may not follow is not listed"
