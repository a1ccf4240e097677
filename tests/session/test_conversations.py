"""What one does with a conversation besides asking: go back, branch, cancel, prepare."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from cases import rotated
from doubles import Letters, make_engine
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.session.detokenize import TextStream
from mlx_eagle.session.session import Session
from mlx_eagle.target.target import Target
from mlx_eagle.tree import TreeShape
from mlx_eagle.worker import Worker
from turning_pair import make_turning_engine

TREE = TreeShape.chain(3)
OPTIONS: dict[str, Any] = {"max_tokens": 12, "tree": TREE}


def said(stream: Any) -> str:
    return "".join(response.text for response in stream)


@pytest.fixture(scope="module")
def talked(turning: Engine, prompts: list[str]) -> Session:
    """A conversation of two turns, which tests leave as it is."""
    session = turning.session(system="Be brief.")
    for prompt in prompts[1:3]:
        list(session.ask(prompt, **OPTIONS))
    return session


@pytest.fixture
def talk(talked: Session) -> Session:
    """A conversation of two turns, with caches of its own."""
    return talked.fork()


def test_regenerating_replaces_the_answer_and_reads_nothing(talk: Session) -> None:
    before = list(talk.messages)
    *_, last = responses = list(talk.regenerate(**OPTIONS))
    assert talk.messages == before, "greedy: the same answer"
    assert last.stats.prompt_tokens - last.stats.cached_tokens == 1
    other = said(talk.regenerate(temperature=1.5, seed=3, **OPTIONS))
    assert talk.messages == [*before[:3], {"role": "assistant", "content": other}]
    assert other != said(responses)


def test_an_edited_question_takes_the_place_of_the_old_one(
    talk: Session, turning: Engine, prompts: list[str]
) -> None:
    first = talk.messages[:2]
    answer = said(talk.edit(prompts[5], **OPTIONS))
    question = {"role": "user", "content": prompts[5]}
    assert talk.messages == [*first, question, {"role": "assistant", "content": answer}]
    system = {"role": "system", "content": "Be brief."}
    assert answer == turning.generate([system, *first, question], **OPTIONS).text


def test_undo_goes_back_turn_by_turn_and_returns_the_question(
    talk: Session, prompts: list[str]
) -> None:
    assert talk.undo() == {"role": "user", "content": prompts[2]}
    assert len(talk.messages) == 2
    assert talk.undo() == {"role": "user", "content": prompts[1]}
    assert talk.undo() is None
    for method in (talk.regenerate, lambda: talk.edit("x")):
        with pytest.raises(EagleError, match="nothing was asked yet"):
            method()


def test_branches_do_not_see_each_other(talk: Session, turning: Engine, prompts: list[str]) -> None:
    twin = talk.fork()
    before = list(talk.messages)
    answers = [said(twin.ask(prompts[7], **OPTIONS)), said(talk.ask(prompts[8], **OPTIONS))]
    assert twin.messages[4:] != talk.messages[4:]
    system = {"role": "system", "content": "Be brief."}
    for prompt, answer in zip((prompts[7], prompts[8]), answers, strict=True):
        asked = [system, *before, {"role": "user", "content": prompt}]
        assert answer == turning.generate(asked, **OPTIONS).text


def test_a_prompt_that_requests_share_is_read_once(
    turning: Engine, prompts: list[str], monkeypatch: pytest.MonkeyPatch, is_quick: bool
) -> None:
    """The rows that the target runs are counted, with speculation on."""
    instructions = " ".join(prompts[:5] if is_quick else prompts + prompts[:30])
    system = {"role": "system", "content": instructions}
    rows, extend = [], Target.extend

    def counted(self: Target, tokens: mx.array, cache: Any) -> Any:
        rows.append(tokens.shape[0])
        return extend(self, tokens, cache)

    monkeypatch.setattr(Target, "extend", counted)
    base = turning.session(system=instructions)
    base.read([system, {"role": "user", "content": ""}])
    n_read = sum(rows)
    assert n_read > 60
    rows.clear()
    for prompt in prompts[1:3]:
        session = base.fork()
        *_, last = list(session.ask(prompt, **OPTIONS))
        assert last.stats.cached_tokens >= n_read - 20
    assert sum(rows) < 2 * 60
    want = turning.generate([system, {"role": "user", "content": prompts[2]}], **OPTIONS)
    assert session.messages[-1]["content"] == want.text


def test_what_stands_before_any_question_can_be_read_while_it_is_typed(
    turning: Any, prompts: list[str]
) -> None:
    ready, other = (turning.session(system="Answer in one word.") for _ in range(2))
    for asked in prompts[:2]:
        assert ready.read_ahead()
        n_read = len(ready.prefix.tokens)
        *_, last = list(ready.ask(asked, **OPTIONS))
        assert last.stats.cached_tokens == n_read - 1 > 5
        assert (
            "".join(r.text for r in other.ask(asked, **OPTIONS)) == (ready.messages[-1]["content"])
        )
        assert [m["role"] for m in ready.messages] == [m["role"] for m in other.messages]


def test_a_second_turn_runs_only_new_tokens(
    demo: Engine, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted at the target: the second prefill runs the rows that the first turn lacks."""
    session = demo.session()
    first = list(session.ask(prompts[3], max_tokens=60, tree=TREE))  # a short answer
    assert first[-1].finish_reason == "stop"
    turn = first[-1].prompt_tokens + len(first)
    rows, extend = [], Target.extend

    def counted(self: Target, tokens: mx.array, cache: Any) -> Any:
        rows.append(tokens.shape[0])
        return extend(self, tokens, cache)

    monkeypatch.setattr(Target, "extend", counted)
    second = list(session.ask(prompts[2], **OPTIONS))
    stats = second[-1].stats
    assert stats.accepted > 0
    # At most the newest token of the first turn is run again, for the head; the last is the root.
    assert stats.cached_tokens >= turn - 1
    assert sum(rows) == stats.prompt_tokens - stats.cached_tokens - 1


def test_cancelling_ends_the_answer_after_its_round_and_keeps_what_was_said(
    talk: Session, turning: Engine, prompts: list[str]
) -> None:
    pieces = []
    for response in talk.ask(prompts[3], max_tokens=50, ignore_eos=True, tree=TREE):
        pieces.append(response)
        if len(pieces) == 7:
            talk.cancel()
    assert pieces[-1].finish_reason == "cancelled"
    assert 7 <= len(pieces) <= 11
    assert pieces[-1].stats.generation_tokens == len(pieces)
    assert talk.messages[-1]["content"] == said(pieces)
    system = {"role": "system", "content": "Be brief."}
    asked = [system, *talk.messages, {"role": "user", "content": prompts[4]}]
    assert said(talk.ask(prompts[4], **OPTIONS)) == turning.generate(asked, **OPTIONS).text


def test_a_cancelled_prefill_keeps_what_was_read(talk: Session, turning: Engine) -> None:
    before, question = list(talk.messages), "why " * 20
    enough = len(talk.prefix.tokens) + 20

    def stop(done: int, total: int) -> None:
        if done > enough:
            talk.cancel()

    stream = talk.ask(question, prefill_step_size=16, progress=stop, **OPTIONS)
    assert list(stream) == []
    assert talk.messages == before
    *_, last = got = list(talk.ask(question, **OPTIONS))
    assert last.stats.cached_tokens > enough
    system = {"role": "system", "content": "Be brief."}
    asked = [system, *before, {"role": "user", "content": question}]
    assert [r.token for r in got] == turning.generate(asked, **OPTIONS).tokens


def test_a_thread_or_a_task_may_cancel_at_any_moment(prompts: list[str]) -> None:
    worker = Worker()
    engine = worker.call(make_turning_engine)
    session = worker.call(engine.session)
    options = {"max_tokens": 1500, "ignore_eos": True, "tree": TREE}

    async def cancelled_after(n: int) -> None:
        stream = worker.astream(lambda: session.ask(prompts[2], **options), session.cancel)
        async for response in stream:
            if response.generation_tokens == n:
                break
        await stream.aclose()

    for n in (1, 6):
        stream = worker.stream(lambda: session.ask(prompts[1], **options), session.cancel)
        got = []
        for response in stream:
            got.append(response)
            if len(got) == n:
                threading.Thread(target=session.cancel).start()
        assert got[-1].finish_reason == "cancelled"
        asyncio.run(cancelled_after(n))
        messages = [*session.messages, {"role": "user", "content": prompts[3]}]
        assert len(messages) % 2 == 1
        answer = worker.call(lambda: said(session.ask(prompts[3], **OPTIONS)))
        assert answer == worker.call(lambda m=messages: engine.generate(m, **OPTIONS).text)
        worker.call(session.clear)
    worker.close()


def test_reading_can_be_cancelled_and_says_so(turning: Engine) -> None:
    session = turning.session()
    session.cancel()
    assert session.read([5] * 40), "what was cancelled before is not this"
    other = turning.session()
    stop = {"progress": lambda *_: other.cancel(), "prefill_step_size": 16}
    assert not other.read([5] * 40, **stop)
    assert other.read([5] * 40)


@pytest.mark.parametrize(
    ("n", "tree"), list(rotated([3, 1, 4, 9, 6, 2], [None, TreeShape.chain(4), TreeShape(4, 3, 8)]))
)
def test_what_is_held_is_what_was_given(
    n: int, tree: TreeShape | None, turning: Engine, prompts: list[str]
) -> None:
    """A round may find more tokens than the answer has budget for: they never were."""
    session = turning.session()
    ids = turning.tokenizer.encode("def join(a, b):\n    ")
    given = [r.token for r in session.stream_generate(ids, max_tokens=n, tree=tree)]
    assert session.prefix.tokens == [*ids, *given]
    assert session.prefix.drafter.rows <= session.prefix.cache.rows <= len(ids) + n
    stream = session.stream_generate(ids, max_tokens=60, ignore_eos=True, tree=tree)
    given = [next(stream).token for _ in range(n)]
    stream.close()
    assert session.prefix.tokens == [*ids, *given]
    assert session.prefix.drafter.rows <= session.prefix.cache.rows <= len(ids) + n


def test_an_error_in_the_middle_forgets_rows_but_no_tokens(turning: Engine) -> None:
    session = turning.session()
    list(session.stream_generate([5, 6, 7], max_tokens=4, tree=TREE))
    before = list(session.prefix.tokens)

    def fail(tokens: mx.array, logits: mx.array) -> mx.array:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        list(session.stream_generate([*before, 9], logits_processors=[fail]))
    assert session.prefix.tokens == before
    want = turning.generate([*before, 9], max_tokens=6).tokens
    assert [r.token for r in session.stream_generate([*before, 9], max_tokens=6)] == want


def test_requests_that_are_abandoned_free_their_memory_at_once(
    tiny_target: Any, head_config: Any
) -> None:
    import gc

    model = tiny_target("llama", head_dim=256, max_position_embeddings=2048)
    engine = make_engine(model, head_config, Letters())
    gc.collect()
    gc.disable()
    try:
        ids = [5 + n % 100 for n in range(90)]  # more than 10**6 bytes of rows
        list(engine.stream_generate(ids, max_tokens=2, tree=TREE))
        before = mx.get_active_memory()
        for _ in range(2):
            for _ in engine.stream_generate(ids, max_tokens=9, tree=TREE):
                break
            for _ in engine.session().ask("why " * 20, max_tokens=9, tree=TREE):
                break
        assert mx.get_active_memory() - before < 10**6
    finally:
        gc.enable()


def test_a_question_must_be_text_and_answers_alone_cannot_be_undone(turning: Engine) -> None:
    session = turning.session()
    with pytest.raises(EagleError, match="the question is int"):
        session.ask(5)  # type: ignore[arg-type]
    session.messages = [{"role": "assistant", "content": "hello"}]
    assert session.undo() is None


def test_usage_says_what_is_held(talk: Session, tmp_path: Path) -> None:
    usage = talk.usage()
    assert usage.tokens == len(talk.prefix.tokens) > 60
    assert usage.max_context == 2048
    assert usage.cache_bytes == talk.prefix.nbytes > 0
    talk.clear()
    assert talk.usage() == (0, 2048, 0)


def test_an_engine_with_other_caches_learns_costs_of_its_own_and_is_made_once(
    turning: Engine,
) -> None:
    kv = KVOptions(bits=8, group_size=32)
    other = turning.with_kv(kv)
    assert other is turning.with_kv(kv)
    assert turning.with_kv(turning.target.kv) is turning
    assert other.planners is not turning.planners
    assert other.planners.records is None, "nothing learnt here is put on record as the pair's"


def test_c3_an_edited_question_must_be_text_too(talk: Session) -> None:
    before = list(talk.messages)
    with pytest.raises(EagleError, match="the question is int"):
        talk.edit(123)  # type: ignore[arg-type]
    assert talk.messages == before


def test_c9_a_stop_string_that_only_the_end_shows_ends_the_answer(
    turning: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detokenizer that holds all of its text back until it is finished."""
    want = turning.generate("def f", **OPTIONS).text
    assert len(want) > 3

    def hold(self: TextStream, token: int) -> str:
        self._tokens.append(token)
        return ""

    monkeypatch.setattr(TextStream, "add", hold)
    result = turning.generate("def f", stop=[want[3:]], **OPTIONS)
    assert (result.text, result.finish_reason) == (want[:3], "stop")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_b7_logits_that_are_no_numbers_are_an_error_at_once(
    temperature: float, turning: Engine
) -> None:
    def spoil(tokens: mx.array, logits: mx.array) -> mx.array:
        return logits * mx.nan if tokens.shape[0] > 4 else logits

    session = turning.session()
    with pytest.raises(EagleError, match="logits are not numbers"):
        list(session.stream_generate([5, 6, 7], logits_processors=[spoil], temperature=temperature))


def test_b5_every_sampled_answer_has_a_seed_of_its_own_which_its_statistics_name(
    turning: Engine,
) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "max_tokens": 8, "tree": TREE}
    answers = [turning.generate("def f", **options) for _ in range(4)]
    assert len({tuple(answer.tokens) for answer in answers}) > 1
    seeds = [answer.stats.seed for answer in answers]
    assert len(set(seeds)) == 4
    again = turning.generate("def f", seed=seeds[2], **options)
    assert (again.tokens, again.stats.seed) == (answers[2].tokens, seeds[2])
    assert turning.generate("def f", max_tokens=2).stats.seed is None, "nothing is drawn"
