"""Where answers end, what streams say, and what conversations reuse."""

from dataclasses import replace
from itertools import islice
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import generate_step

from cases import broad
from doubles import Letters, NoText, make_engine, make_session
from mlx_eagle.drafters.eagle import EagleDrafter
from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.speculation import Speculation
from mlx_eagle.target.target import Target
from mlx_eagle.tree import PLAIN, TreeShape

SHAPES = [TreeShape.chain(1), TreeShape.chain(4), TreeShape(4, 4, 8)]
SHORT_ANSWERS = [3, 7, 17]  # prompts that are answered in 6 to 15 tokens


def ask(prompts: list[str], index: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompts[index]}]


@pytest.fixture(scope="module")
def plain_answers(demo: Any, prompts: list[str], is_quick: bool) -> dict[int, Any]:
    """What plain decoding answers to some prompts: by default to those with short answers."""
    chosen = SHORT_ANSWERS if is_quick else range(20)
    return {i: demo.generate(ask(prompts, i), max_tokens=120, speculate=False) for i in chosen}


@pytest.mark.parametrize("shape", [*map(broad, SHAPES[:2]), SHAPES[2]])
def test_the_end_token_inside_a_round_ends_the_answer_as_in_plain_decoding(
    shape: TreeShape, demo: Any, prompts: list[str], plain_answers: dict[int, Any]
) -> None:
    ended = 0
    for index, want in plain_answers.items():
        got = demo.generate(ask(prompts, index), max_tokens=120, tree=shape)
        assert got.tokens == want.tokens
        assert got.text == want.text
        assert got.finish_reason == want.finish_reason
        if got.finish_reason == "stop":
            ended += 1
            assert got.tokens[-1] in demo.tokenizer.eos_token_ids
            assert "<|im_end|>" not in got.text
    assert ended > 2, "hardly an answer ended by itself; the test shows little"


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
def test_max_tokens_inside_a_round_cuts_exactly(n: int, turning: Any, prompts: list[str]) -> None:
    want = turning.generate(ask(prompts, 1), max_tokens=n, speculate=False)
    got = turning.generate(ask(prompts, 1), max_tokens=n, tree=TreeShape.chain(4))
    assert got.tokens == want.tokens
    assert len(got.tokens) == n
    assert got.finish_reason == want.finish_reason == "length"


def test_a_stop_string_inside_a_round_cuts_where_plain_decoding_does(
    turning: Any, prompts: list[str]
) -> None:
    whole = turning.generate(ask(prompts, 1), max_tokens=40, speculate=False).text
    for start in (10, 17):
        stop = [whole[start : start + 5], "never in the text"]
        want = turning.generate(ask(prompts, 1), max_tokens=80, stop=stop, speculate=False)
        got = turning.generate(ask(prompts, 1), max_tokens=80, stop=stop, tree=TreeShape(4, 4, 8))
        assert got.text == want.text == whole[: whole.find(stop[0])]
        assert got.tokens == want.tokens
        assert got.finish_reason == "stop"


def test_ignore_eos_goes_on_to_the_limit(
    demo: Any, prompts: list[str], plain_answers: dict[int, Any]
) -> None:
    index = SHORT_ANSWERS[0]
    n = len(plain_answers[index].tokens) + 3
    result = demo.generate(ask(prompts, index), max_tokens=n, ignore_eos=True)
    assert (len(result.tokens), result.finish_reason) == (n, "length")
    assert plain_answers[index].finish_reason == "stop"


def test_a_stream_carries_one_token_each_and_statistics_at_the_end(
    turning: Any, prompts: list[str]
) -> None:
    options = {"max_tokens": 40, "ignore_eos": True, "tree": TreeShape.chain(3)}
    responses = list(turning.stream_generate(ask(prompts, 1), **options))
    assert [r.generation_tokens for r in responses] == list(range(1, 41))
    assert all(r.stats is None and r.finish_reason is None for r in responses[:-1])
    stats = responses[-1].stats
    assert stats.generation_tokens == 40
    assert stats.accepted == sum(stats.n_accepted_per_round) == responses[-1].n_accepted
    assert stats.acceptance_length == pytest.approx(stats.accepted / stats.rounds + 1)
    assert stats.drafted == 3 * stats.rounds
    assert 40 <= 1 + stats.rounds + stats.accepted < 44
    shares = stats.acceptance_by_depth
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(stats.accepted / stats.rounds)
    parts = stats.draft_seconds + stats.verify_seconds + stats.host_seconds
    assert parts == pytest.approx(stats.generation_seconds, rel=0.2)
    assert sum(r.from_draft for r in responses) <= stats.accepted
    assert stats.to_dict()["rounds"] == stats.rounds


def test_plain_decoding_says_so_in_its_statistics(turning: Any, prompts: list[str]) -> None:
    stats = turning.generate(ask(prompts, 1), max_tokens=10, speculate=False).stats
    assert stats.speculation == "off: not asked for"
    assert (stats.drafted, stats.accepted, stats.acceptance_length) == (0, 0, 1.0)
    assert turning.generate(ask(prompts, 1), max_tokens=10, tree=PLAIN).stats.drafted == 0


def test_characters_of_several_tokens_are_never_shown_in_halves(demo: Any) -> None:
    """The tokenizer knows bytes only, so each of these characters is several tokens."""
    from mlx_eagle.session.detokenize import TextStream

    text = "naïve 漢字 🙂 é"
    ids = demo.tokenizer.encode(text)
    assert len(ids) > len(text)
    stream = TextStream(demo.tokenizer)
    segments = [stream.add(token) for token in ids] + [stream.finish()]
    assert "".join(segments) == text
    assert not any("\ufffd" in segment for segment in segments)


def test_a_second_turn_reuses_rows_and_answers_as_a_fresh_conversation(
    turning: Any, prompts: list[str]
) -> None:
    session = turning.session()
    options = {"max_tokens": 14, "tree": TreeShape.chain(3)}  # the same rounds whatever they take
    first = "".join(r.text for r in session.ask(prompts[1], **options))
    held = session.prefix.cache
    second = list(session.ask(prompts[2], **options))
    assert session.prefix.cache is held, "the second turn started over"
    messages = [
        {"role": "user", "content": prompts[1]},
        {"role": "assistant", "content": first},
        {"role": "user", "content": prompts[2]},
    ]
    assert session.messages[:3] == messages
    fresh = turning.generate(messages, **options)
    assert [r.token for r in second] == fresh.tokens
    assert second[-1].stats.n_accepted_per_round == fresh.stats.n_accepted_per_round


@pytest.mark.parametrize("speculate", [True, False])
def test_an_answer_cut_short_keeps_the_conversation_usable(
    speculate: bool, turning: Any, prompts: list[str]
) -> None:
    session = turning.session()
    answer = session.ask(prompts[1], max_tokens=60, ignore_eos=True, speculate=speculate)
    said = "".join(r.text for r in islice(answer, 13))
    answer.close()
    assert session.messages[-1] == {"role": "assistant", "content": said}
    again = [r.token for r in session.ask(prompts[2], max_tokens=12, speculate=speculate)]
    messages = session.messages[:3]
    assert again == turning.generate(messages, max_tokens=12).tokens


def test_switching_speculation_between_turns_changes_nothing(
    turning: Any, prompts: list[str]
) -> None:
    session, tokens = turning.session(), []
    for turn, speculate in enumerate([False, True, False, True]):
        answer = session.ask(prompts[turn], max_tokens=8, speculate=speculate)
        tokens.append([r.token for r in answer])
    reference = turning.session()
    for turn in range(4):
        want = [r.token for r in reference.ask(prompts[turn], max_tokens=8, speculate=False)]
        assert tokens[turn] == want


def test_clear_forgets_the_conversation_but_not_the_system_prompt(
    turning: Any, prompts: list[str]
) -> None:
    session = turning.session(system="Be brief.")
    want = [r.token for r in session.ask(prompts[1], max_tokens=12)]
    session.clear()
    assert session.messages == []
    assert [r.token for r in session.ask(prompts[1], max_tokens=12)] == want


def test_prompts_may_be_text_ids_or_messages(turning: Any, prompts: list[str]) -> None:
    text = f"<|im_start|>user\n{prompts[1]}<|im_end|>\n<|im_start|>assistant\n"
    ids = turning.tokenizer.encode(text)
    results = [turning.generate(p, max_tokens=12).tokens for p in (text, ids, ask(prompts, 1))]
    assert results[0] == results[1] == results[2]


def test_prefill_reports_progress_chunk_by_chunk(turning: Any) -> None:
    seen: list[tuple[int, int]] = []
    options = {"progress": lambda done, total: seen.append((done, total)), "prefill_step_size": 32}
    turning.generate([5 + i % 50 for i in range(80)], max_tokens=1, **options)
    assert seen == [(0, 80), (32, 80), (64, 80), (79, 80), (80, 80)]


def test_prefill_in_chunks_changes_neither_tokens_nor_acceptance(
    turning: Any, prompts: list[str]
) -> None:
    options = {"max_tokens": 24, "tree": TreeShape.chain(3)}  # the same rounds whatever they take
    want = turning.generate(ask(prompts, 3), **options)
    got = turning.generate(ask(prompts, 3), prefill_step_size=7, **options)
    assert got.tokens == want.tokens
    assert got.stats.n_accepted_per_round == want.stats.n_accepted_per_round


def test_an_interrupted_prefill_leaves_nothing_that_a_later_prompt_could_reuse(
    turning: Any, prompts: list[str]
) -> None:
    def interrupt(done: int, _: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    session = turning.session()
    list(session.stream_generate(ask(prompts, 0), max_tokens=5))
    with pytest.raises(KeyboardInterrupt):
        list(session.stream_generate([9] * 60, progress=interrupt, prefill_step_size=8))
    again = [r.token for r in session.stream_generate(ask(prompts, 0), max_tokens=20)]
    assert again == turning.generate(ask(prompts, 0), max_tokens=20).tokens


@pytest.mark.parametrize(
    ("prompt", "options", "error", "message"),
    [
        ([], {}, EagleError, "the prompt is empty"),
        ([1], {"max_tokens": 0}, ValueError, "max_tokens is 0"),
        ([1], {"stop": "END"}, ValueError, "give a list"),
        ([1], {"temperature": -1}, ValueError, "temperature is -1"),
        ([1], {"tempature": 1}, TypeError, "tempature"),
        ([1], {"tree": TreeShape(1, 3000, 5)}, EagleError, "width 3000.*2048"),
        ([5000], {}, EagleError, "token 5000.*4096"),
        ([-1], {}, EagleError, "token -1"),
    ],
)
def test_a_bad_request_is_refused_before_anything_runs(
    prompt: list[int], options: dict[str, Any], error: type[Exception], message: str, demo: Any
) -> None:
    with pytest.raises(error, match=message):
        demo.generate(prompt, **options)


def test_a_target_that_cannot_hold_a_tree_still_decodes_plainly(tiny_target: Any) -> None:
    model: nn.Module = tiny_target(
        "mamba",
        state_size=8,
        conv_kernel=4,
        use_bias=False,
        use_conv_bias=True,
        time_step_rank=4,
        intermediate_size=128,
    )
    prompt = list(range(3, 20))
    want = [int(t) for t, _ in generate_step(mx.array(prompt), model, max_tokens=20)]
    target = Target(model, speculate=False)
    session = make_session(target)
    assert [r.token for r in session.stream_generate(prompt, max_tokens=20)] == want
    assert [r.token for r in session.stream_generate(prompt, max_tokens=20)] == want
    info = EngineInfo("", "", "", "", Speculation.off("no head was given"), "", False)
    stats = Engine(target, NoText(), None, info).generate(prompt, max_tokens=3).stats
    assert stats.speculation == "off: no head was given"


def test_a_refused_question_leaves_the_conversation_as_it_was(
    turning: Any, prompts: list[str]
) -> None:
    session = turning.session()
    list(session.ask(prompts[1], max_tokens=5))
    before = list(session.messages)
    with pytest.raises(ValueError, match="max_tokens is 0"):
        session.ask(prompts[2], max_tokens=0)
    assert session.messages == before


@pytest.mark.parametrize("speculate", [True, broad(False)])
@pytest.mark.parametrize(
    "architecture", [broad("llama"), "gemma3_text", broad("qwen3_moe"), broad("gpt_oss")]
)
def test_conversations_over_many_architectures_decode_as_mlx_lm(
    architecture: str,
    speculate: bool,
    tiny_target: Any,
    head_config: HeadConfig,
    is_quick: bool,
) -> None:
    """Prompts that extend, step back within and beyond the margin of a window of 8, and restart."""
    model: nn.Module = tiny_target(architecture)
    n = 5 if is_quick else 14
    prompts = [list(range(3, 43)), [*range(3, 43), 9, 9, 9, 60, 61], list(range(3, 30))]
    prompts += [[5, 6], [7], list(range(3, 103)), list(range(3, 98))]
    want = [[int(t) for t, _ in generate_step(mx.array(p), model, max_tokens=n)] for p in prompts]
    sizes = {"hidden_size": 64, "target_hidden_size": 64}
    vocabularies = {"target_vocab_size": 128, "draft_vocab_size": 128}
    mx.random.seed(4)
    head = EagleHead(replace(head_config, **sizes, **vocabularies))
    target = Target(model, taps=head.config.taps)
    session = make_session(target, lambda: EagleDrafter(head, target))
    for prompt, tokens in zip(prompts, want, strict=True):
        options = {"max_tokens": n, "speculate": speculate, "tree": TreeShape(3, 3, 7)}
        assert [r.token for r in session.stream_generate(prompt, **options)] == tokens


def test_a_new_question_ends_the_answer_that_is_still_open(
    turning: Any, prompts: list[str]
) -> None:
    session = turning.session()
    old = session.ask(prompts[1], max_tokens=40, ignore_eos=True)
    said = next(old).text + next(old).text
    new = [r.token for r in session.ask(prompts[2], max_tokens=20)]
    assert list(old) == []
    assert session.messages[1] == {"role": "assistant", "content": said}
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2
    assert new == turning.generate(session.messages[:3], max_tokens=20).tokens


def test_a_question_that_was_never_answered_is_not_remembered(
    turning: Any, prompts: list[str]
) -> None:
    def interrupt(done: int, _: int) -> None:
        raise KeyboardInterrupt

    session = turning.session()
    with pytest.raises(KeyboardInterrupt):
        list(session.ask(prompts[0], progress=interrupt))
    assert session.messages == []


@pytest.mark.parametrize("prompt", [5, None, b"ab", ["a"], [1, "a"], mx.array([1, 2]), [True]])
def test_a_prompt_of_another_kind_is_refused_with_the_three_that_exist(
    prompt: Any, turning: Any
) -> None:
    with pytest.raises(EagleError, match="a string, a list of token ids .* or a list of chat"):
        turning.generate(prompt)


def test_a_template_that_refuses_the_messages_is_one_clear_error(
    turning: Any, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "{{ raise_exception('System role not supported') }}"
    monkeypatch.setattr(turning.tokenizer._tokenizer, "chat_template", refusal)
    with pytest.raises(EagleError, match="refuses the messages: System role not supported"):
        turning.generate(ask(prompts, 0))


def test_sixteen_bit_greedy_decoding_breaks_ties_as_mlx_lm_does(
    tiny_target: Any, is_quick: bool
) -> None:
    model: nn.Module = tiny_target("llama")
    model.set_dtype(mx.bfloat16)
    for start in range(3, 6 if is_quick else 9):
        prompt = list(range(start, start + 20))
        want = [int(t) for t, _ in generate_step(mx.array(prompt), model, max_tokens=30)]
        session = make_session(Target(model))
        assert [r.token for r in session.stream_generate(prompt, max_tokens=30)] == want


@pytest.mark.parametrize(
    ("is_stopped", "shape"),
    [
        (False, None),
        (True, None),
        (False, TreeShape(3, 3, 7)),
        broad(True, TreeShape.chain(3)),
        broad(False, TreeShape.chain(3)),
        broad(True, TreeShape(3, 3, 7)),
    ],
)
def test_the_target_runs_no_round_that_the_answer_cannot_use(
    is_stopped: bool,
    shape: TreeShape | None,
    tiny_target: Any,
    head_config: HeadConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One forward for the prompt and one for every round; plain rounds may find a stop one late."""
    engine = make_engine(tiny_target("llama"), head_config, Letters())
    options: dict[str, Any] = {"temperature": 1.0, "seed": 3}
    options |= {"tree": shape} if shape else {"speculate": False}
    text = engine.generate([5, 6, 7, 8], max_tokens=20, ignore_eos=True, **options).tokens
    n_tokens = next(n for n in range(6, 20) if text[n] not in text[:n])
    monkeypatch.setattr(Letters, "eos_token_ids", frozenset({text[n_tokens]}))
    calls, run = [], Target._run

    def counted(self: Target, tree: Any, cache: Any) -> Any:
        calls.append(tree)
        return run(self, tree, cache)

    monkeypatch.setattr(Target, "_run", counted)
    most = 99 if is_stopped else n_tokens
    found = engine.generate([5, 6, 7, 8], max_tokens=most, **options)
    assert found.finish_reason == ("stop" if is_stopped else "length")
    late = is_stopped and shape is None
    assert len(calls) == 1 + (1 + found.stats.rounds) + late
