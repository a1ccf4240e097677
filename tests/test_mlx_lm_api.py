"""mlx-lm's functions with an engine in place of the model: stock mlx-lm is the oracle."""

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.models.cache import make_prompt_cache as stock_cache
from mlx_lm.sample_utils import make_logits_processors, make_sampler

import mlx_eagle
from cases import broad
from mlx_eagle import mlx_lm_api as drop_in
from mlx_eagle.errors import EagleError
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.tree import TreeShape

TREE = TreeShape(3, 3, 7)


@pytest.fixture(scope="module")
def question(turning: Any, prompts: list[str]) -> list[int]:
    messages = [{"role": "user", "content": prompts[4]}]
    ids: list[int] = turning.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    return ids


@pytest.fixture
def pair(small_toy_pair: None) -> Any:
    """A pair whose answers end by themselves."""
    return mlx_eagle.load(calibrate=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prefill_step_size": 5},
        broad({"sampler": make_sampler(0.8, top_p=0.9)}),
        {"sampler": make_sampler(0.6), "logits_processors": make_logits_processors({3: 1.0}, 1.2)},
        {"max_kv_size": 32},
    ],
)
def test_every_field_that_mlx_lm_gives_is_given_with_the_same_value(
    options: dict[str, Any], turning: Any, question: list[int]
) -> None:
    mx.random.seed(5)
    model, tokenizer = turning.target.model, turning.tokenizer
    want = list(mlx_lm.stream_generate(model, tokenizer, question, max_tokens=12, **options))
    mx.random.seed(5)
    got = list(
        drop_in.stream_generate(turning, tokenizer, question, max_tokens=12, tree=TREE, **options)
    )
    assert [r.token for r in got] == [r.token for r in want]
    # mlx-lm's detokenizer takes away the space with which an answer begins.
    assert "".join(r.text for r in got).removeprefix(" ") == "".join(r.text for r in want)
    for ours, theirs in zip(got, want, strict=True):
        assert mx.allclose(ours.logprobs, theirs.logprobs, atol=1e-4)
        assert ours.prompt_tokens == theirs.prompt_tokens
        assert ours.generation_tokens == theirs.generation_tokens
    assert [r.finish_reason for r in got][-1] == want[-1].finish_reason
    assert set(want[0].__dataclass_fields__) <= set(got[0]._fields)


def test_a_quantized_cache_gives_the_text_that_it_gives_in_mlx_lm(
    pair: Any, question: list[int]
) -> None:
    options = {"max_tokens": 16, "kv_bits": 8, "kv_group_size": 32}
    want = mlx_lm.generate(
        pair.target.model, pair.tokenizer, question, quantized_kv_start=0, **options
    )
    got = drop_in.generate(pair, None, question, tree=TREE, **options)
    # mlx-lm's detokenizer takes away the space with which an answer begins.
    assert got.removeprefix(" ") == want
    assert pair.session().prefix.cache.layers[0].__class__.__name__ == "KVCache"


def test_a_prompt_cache_goes_on_where_it_was(
    pair: Any, question: list[int], tmp_path: Path
) -> None:
    """Two prompts in a row, the second after a way through a file."""
    theirs, ours = stock_cache(pair.target.model), drop_in.make_prompt_cache(pair)
    more = pair.tokenizer.encode("\nAnd what does it return?")
    for prompt in (question, more):
        want = mlx_lm.generate(
            pair.target.model, pair.tokenizer, prompt, max_tokens=12, prompt_cache=theirs
        )
        got = drop_in.generate(pair, None, prompt, max_tokens=12, prompt_cache=ours, tree=TREE)
        assert got.removeprefix(" ") == want
        drop_in.save_prompt_cache(tmp_path / "cache", ours)
        ours = drop_in.load_prompt_cache(tmp_path / "cache", pair)
    assert ours.tokens == ours.session.prefix.tokens


@pytest.mark.parametrize(
    ("tree", "n"),
    [
        broad(TreeShape.chain(4), 1),
        (TreeShape(4, 3, 8), 3),
        (TreeShape.chain(4), 8),
        *[broad(TreeShape.chain(4), n) for n in (2, 3, 5, 13)],
        *[broad(TreeShape(4, 3, 8), n) for n in (1, 2, 5, 8, 13)],
        *[broad(TreeShape(5, 4, 16), n) for n in (1, 2, 3, 5, 8, 13)],
    ],
)
def test_a_cache_holds_what_was_given_and_not_what_a_round_found_beyond(
    n: int, tree: TreeShape, turning: Any
) -> None:
    first, second = (turning.tokenizer.encode(t) for t in ("def join(a, b):\n    ", " x"))
    theirs, ours = stock_cache(turning.target.model), drop_in.make_prompt_cache(turning)
    options = {"max_tokens": n}
    model, tokenizer = turning.target.model, turning.tokenizer
    said = list(mlx_lm.stream_generate(model, tokenizer, first, prompt_cache=theirs, **options))
    list(drop_in.stream_generate(turning, None, first, prompt_cache=ours, tree=tree, **options))
    assert ours.tokens == [*first, *(r.token for r in said)]
    want = mlx_lm.generate(model, tokenizer, second, max_tokens=12, prompt_cache=theirs)
    responses = list(
        drop_in.stream_generate(turning, None, second, 12, prompt_cache=ours, tree=tree)
    )
    # mlx-lm's detokenizer takes away the space with which an answer begins.
    assert "".join(r.text for r in responses).removeprefix(" ") == want
    assert responses[0].prompt_tokens == len(second)


def test_progress_is_reported_as_there(turning: Any, question: list[int]) -> None:
    seen: dict[str, list[tuple[int, int]]] = {"stock": [], "ours": []}
    for name, generate, model in [
        ("stock", mlx_lm.generate, turning.target.model),
        ("ours", drop_in.generate, turning),
    ]:
        generate(
            model,
            turning.tokenizer,
            question,
            max_tokens=2,
            prefill_step_size=6,
            prompt_progress_callback=lambda done, total, name=name: seen[name].append(
                (done, total)
            ),
        )
    assert seen["ours"] == seen["stock"]


def test_every_keyword_of_mlx_lm_is_known_but_for_those_that_make_no_sense_here() -> None:
    from mlx_lm.generate import generate_step, stream_generate

    theirs = set(inspect.signature(generate_step).parameters)
    theirs |= set(inspect.signature(stream_generate).parameters) - {"kwargs"}
    ours = set(inspect.signature(drop_in.stream_generate).parameters)
    ours |= {field.name for field in fields(GenerationOptions)}
    ours |= {"kv_bits", "kv_group_size", "max_kv_size"}  # asked for in tests of their own
    assert theirs - ours == {"stream", "quantized_kv_start", "input_embeddings"}


def test_text_messages_and_arrays_are_prompts(
    turning: Any, question: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    text = turning.tokenizer.decode(question)
    results = [
        drop_in.generate(turning, turning.tokenizer, prompt, max_tokens=8)
        for prompt in (question, text, mx.array(question))
    ]
    assert results[0] == results[1] == results[2]
    drop_in.generate(turning, None, question, verbose=True, max_tokens=8)
    assert results[0] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"nonsense": 1}, TypeError, "nonsense"),
        ({"kv_bits": 3}, EagleError, "kv_bits is 3"),
        ({"kv_bits": 8, "max_kv_size": 64}, EagleError, "were both given"),
    ],
)
def test_what_cannot_be_done_is_refused(
    options: dict[str, Any], error: type[Exception], message: str, turning: Any
) -> None:
    with pytest.raises(error, match=message):
        drop_in.generate(turning, None, [1, 2, 3], **options)
    with pytest.raises(ValueError, match="prompt_cache"):
        drop_in.generate(
            turning, None, [1], kv_bits=8, prompt_cache=drop_in.make_prompt_cache(turning)
        )
    with pytest.raises(ValueError, match="not from make_prompt_cache"):
        drop_in.generate(turning, None, [1], prompt_cache=stock_cache(turning.target.model))
    with pytest.raises(ValueError, match="not the engine's own"):
        drop_in.generate(turning, object(), [1])
    with pytest.raises(ValueError, match="drafts with its own head"):
        drop_in.generate(turning, None, [1], draft_model=object())
    *_, last = drop_in.stream_generate(turning, None, [1], 2, logprobs=False)
    assert last.logprobs is None


def test_minus_one_token_goes_on_until_the_context_is_full(turning: Any) -> None:
    limited = drop_in.Engine(
        turning.target,
        turning.tokenizer,
        turning.head,
        turning.info,
        turning.planners,
        turning.limits,
    )
    limited.limits = turning.limits._replace(max_context=40)
    *_, last = drop_in.stream_generate(limited, None, [5] * 10, -1, ignore_eos=True)
    assert (last.generation_tokens, last.finish_reason) == (30, "length")
    assert last.stats.ended_by == "the context of 40 tokens is full (max_context sets it)"


def test_a_prompt_whose_reading_is_cancelled_is_not_part_of_what_was_seen(
    turning: Any, question: list[int]
) -> None:
    cache = drop_in.make_prompt_cache(turning)
    options: dict[str, Any] = {"prompt_cache": cache, "max_tokens": 3}
    list(drop_in.stream_generate(turning, None, question, **options))
    before = list(cache.tokens)

    def cancel(done: int, total: int) -> None:
        cache.session.cancel()

    given = drop_in.stream_generate(
        turning, None, question, prompt_progress_callback=cancel, prefill_step_size=4, **options
    )
    assert list(given) == []
    assert cache.tokens == before
    assert len(cache.session.prefix.tokens) > len(before)  # held as far as it was read


def test_the_newer_of_two_answers_goes_on_after_what_the_older_one_gave(
    turning: Any, question: list[int]
) -> None:
    cache = drop_in.make_prompt_cache(turning)
    options: dict[str, Any] = {"prompt_cache": cache, "max_tokens": 5}
    older = drop_in.stream_generate(turning, None, question, **options)
    given = [next(older).token for _ in range(3)]
    newer = [r.token for r in drop_in.stream_generate(turning, None, [5, 6], **options)]
    assert cache.tokens == [*question, *given, 5, 6, *newer]
    assert list(older) == []


def test_two_reports_of_progress_are_one_too_many(turning: Any, question: list[int]) -> None:
    reports = {"prompt_progress_callback": print, "progress": print}
    with pytest.raises(TypeError, match="progress"):
        drop_in.stream_generate(turning, None, question, **reports)


def test_c1_a_cache_that_is_saved_in_mid_stream_agrees_with_itself(
    turning: Any, question: list[int], tmp_path: Path
) -> None:
    cache = drop_in.make_prompt_cache(turning)
    stream = drop_in.stream_generate(turning, None, question, 20, prompt_cache=cache)
    given = [next(stream).token for _ in range(3)]
    drop_in.save_prompt_cache(tmp_path / "chat", cache)
    assert cache.tokens == [*question, *given]
    assert list(stream) == [], "saving ended it"
    again = drop_in.load_prompt_cache(tmp_path / "chat", turning)
    assert again.tokens == cache.tokens


def test_b10_mlx_lms_keywords_of_load_are_done_or_refused_by_name() -> None:
    target = str(DEMO / "target")
    engine, tokenizer, config = drop_in.load(
        target, {"trust_remote_code": False}, None, None, True, True, head="none"
    )
    assert tokenizer is engine.tokenizer
    assert config["model_type"] == "llama"
    own = {"tokenizer_config": {"eos_token": "x"}, "model_config": {"num_hidden_layers": 2}}
    for name, value in (own | {"revision": "main", "trust_remote_code": True}).items():
        with pytest.raises(ValueError, match=f"{name} was given"):
            drop_in.load(target, **{name: value})
    theirs = set(inspect.signature(mlx_lm.load).parameters)
    assert theirs <= set(inspect.signature(drop_in.load).parameters)


def test_b10_mlx_lms_keywords_of_drafting_are_done_or_refused_by_name(
    turning: Any, question: list[int]
) -> None:
    *_, last = drop_in.stream_generate(turning, None, question, 12, num_draft_tokens=2)
    assert set(last.stats.drafted_by_depth) == {last.stats.rounds}
    assert len(last.stats.drafted_by_depth) == 2
    with pytest.raises(ValueError, match="quantized_kv_start is 5000"):
        drop_in.generate(turning, None, question, kv_bits=8, quantized_kv_start=5000)
