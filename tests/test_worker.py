"""The thread of an engine: calls in order, streams that can be ended at any moment."""

import asyncio
import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from mlx_eagle.errors import EagleError
from mlx_eagle.worker import Worker
from turning_pair import make_turning_engine


@pytest.fixture
def worker() -> Iterator[Worker]:
    own = Worker()
    yield own
    own.close()


class Counting:
    """A generator of numbers that can be cancelled, and knows on which thread it ran."""

    def __init__(self, n: int = 1_000_000, pause: float = 0.001) -> None:
        self.n, self.pause = n, pause
        self.cancelled = threading.Event()
        self.threads: set[int] = set()
        self.is_closed = False

    def start(self) -> Generator[int]:
        try:
            for i in range(self.n):
                self.threads.add(threading.get_ident())
                time.sleep(self.pause)
                if self.cancelled.is_set():
                    yield -1  # the last word
                    return
                yield i
        finally:
            self.is_closed = True


def test_calls_run_one_after_another_on_one_other_thread(worker: Worker) -> None:
    threads = [worker.call(threading.get_ident) for _ in range(5)]
    assert set(threads) != {threading.get_ident()}
    assert len(set(threads)) == 1
    assert worker.call(divmod, 7, 2) == (3, 1)
    assert worker.call(sorted, [1, 2], reverse=True) == [2, 1]


def test_what_a_call_raises_is_raised_to_the_caller(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        worker.call(divmod, 1, 0)
    assert worker.call(len, "ab") == 2


def test_a_worker_says_whether_it_is_busy(worker: Worker) -> None:
    go = threading.Event()
    assert not worker.is_busy
    job = worker.submit(go.wait)
    assert worker.is_busy
    go.set()
    job.result()
    assert not worker.is_busy


def test_a_stream_hands_over_all_items_in_order(worker: Worker) -> None:
    numbers = Counting(50, 0.0)
    assert list(worker.stream(numbers.start)) == list(range(50))
    assert numbers.threads == {worker.call(threading.get_ident)}
    assert numbers.is_closed


def test_a_stream_that_is_over_stays_over(worker: Worker) -> None:
    stream = worker.stream(Counting(2, 0.0).start)
    assert list(stream) == [0, 1]
    assert list(stream) == []
    stream.close()
    stream.cancel()


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_an_error_comes_after_the_items_before_it(worker: Worker, when: str) -> None:
    def fail() -> Generator[int]:
        if when == "later":
            yield 1
        raise EagleError("too long")

    def refuse() -> Generator[int]:
        raise EagleError("too long")

    stream = worker.stream(fail if when == "later" else refuse)
    seen: list[int] = []
    with pytest.raises(EagleError, match="too long"):
        seen.extend(stream)
    assert seen == ([1] if when == "later" else [])
    assert list(stream) == []


def test_a_cancelled_stream_still_says_its_last_word(worker: Worker) -> None:
    numbers = Counting()
    stream = worker.stream(numbers.start, numbers.cancelled.set)
    assert next(stream) == 0
    stream.cancel()
    seen = list(stream)
    assert seen[-1] == -1
    assert numbers.is_closed


def test_a_stream_that_nothing_can_cancel_ends_after_its_next_item(worker: Worker) -> None:
    numbers = Counting()
    stream = worker.stream(numbers.start)
    next(stream)
    stream.cancel()
    list(stream)
    assert numbers.is_closed


def test_a_closed_stream_has_ended_when_close_returns(worker: Worker) -> None:
    numbers = Counting()
    stream = worker.stream(numbers.start, numbers.cancelled.set)
    next(stream)
    stream.close()
    assert numbers.is_closed
    assert not worker.is_busy
    assert list(stream) == []


def test_a_stream_that_is_cancelled_before_its_turn_never_begins(worker: Worker) -> None:
    go = threading.Event()
    worker.submit(go.wait)
    numbers = Counting()
    stream = worker.stream(numbers.start, numbers.cancelled.set)
    stream.close()
    go.set()
    worker.call(len, "")
    assert not numbers.threads
    assert not numbers.cancelled.is_set()


def test_cancelling_a_stream_that_is_over_does_not_touch_the_next_one(worker: Worker) -> None:
    cancelled = threading.Event()
    first = worker.stream(Counting(2, 0.0).start, cancelled.set)
    assert list(first) == [0, 1]
    second = worker.stream(Counting(50).start, cancelled.set)
    next(second)
    first.cancel()
    first.close()
    assert not cancelled.is_set()
    assert list(second) == list(range(1, 50))


def test_a_stream_can_be_cancelled_while_it_is_being_opened(worker: Worker) -> None:
    """The engine takes its time before it is open to be cancelled: nothing must be lost."""
    begun, go = threading.Event(), threading.Event()
    numbers = Counting()

    def start() -> Generator[int]:
        begun.set()
        go.wait()
        return numbers.start()

    stream = worker.stream(start, numbers.cancelled.set)
    begun.wait()
    stream.cancel()
    assert not numbers.cancelled.is_set()
    go.set()
    assert list(stream) == [-1]


def test_streams_can_be_cancelled_from_any_thread_at_any_moment(worker: Worker) -> None:
    chance = random.Random(5)
    for _ in range(30):
        numbers = Counting(pause=0.0002)
        stream = worker.stream(numbers.start, numbers.cancelled.set)
        canceller = threading.Timer(chance.random() * 0.01, stream.cancel)
        canceller.start()
        assert -1 in [*stream, -1]
        canceller.join()
        assert numbers.is_closed or not numbers.threads


def test_asyncio_calls_leave_the_event_loop_free(worker: Worker) -> None:
    async def main() -> tuple[int, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        result = await worker.acall(divmod, 7, 2)
        await worker.acall(time.sleep, 0.1)
        ticking.cancel()
        return result[0], ticks

    result, ticks = asyncio.run(main())
    assert result == 3
    assert ticks > 10


def test_asyncio_streams_hand_over_all_items_and_errors(worker: Worker) -> None:
    def fail() -> Generator[int]:
        yield 1
        raise EagleError("too long")

    async def read(start: Callable[[], Generator[int]], seen: list[int]) -> None:
        async for item in worker.astream(start):
            seen.append(item)

    seen: list[int] = []
    asyncio.run(read(Counting(50, 0.0).start, seen))
    assert seen == list(range(50))
    with pytest.raises(EagleError, match="too long"):
        asyncio.run(read(fail, seen))
    assert seen == [*range(50), 1]


def test_cancelling_a_task_ends_its_generation(worker: Worker) -> None:
    numbers = Counting()

    async def read() -> None:
        async for _ in worker.astream(numbers.start, numbers.cancelled.set):
            pass

    async def main() -> None:
        task = asyncio.create_task(read())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert numbers.is_closed
    assert numbers.cancelled.is_set()
    assert not worker.is_busy


def test_leaving_an_asyncio_stream_early_ends_its_generation(worker: Worker) -> None:
    numbers = Counting()

    async def main() -> None:
        async for number in worker.astream(numbers.start, numbers.cancelled.set):
            if number == 3:
                break

    asyncio.run(main())  # which closes what was left open
    worker.call(len, "")
    assert numbers.is_closed


def test_many_tasks_share_one_worker(worker: Worker) -> None:
    async def read(n: int) -> list[int]:
        return [item async for item in worker.astream(Counting(n, 0.0).start)]

    async def main() -> list[list[int]]:
        return await asyncio.gather(*(read(n) for n in range(8)))

    assert asyncio.run(main()) == [list(range(n)) for n in range(8)]


def test_a_closed_worker_has_done_what_was_asked_of_it(worker: Worker) -> None:
    own = Worker()
    done: list[int] = []
    for n in range(3):
        own.submit(done.append, n)
    own.close()
    assert done == [0, 1, 2]
    with pytest.raises(RuntimeError, match="closed"):
        own.call(len, "")


def test_c8_a_worker_closes_where_its_block_ends_and_can_be_closed_again() -> None:
    with Worker() as worker:
        assert worker.call(lambda: 5) == 5
    worker.close()
    with pytest.raises(RuntimeError, match="is closed"):
        worker.submit(print)


def test_c8_a_worker_can_be_closed_by_what_runs_on_it() -> None:
    worker = Worker()
    worker.call(worker.close)
    worker.close()
    with pytest.raises(RuntimeError, match="is closed"):
        worker.submit(print)


def test_c8_what_is_submitted_while_a_worker_closes_runs_or_is_refused() -> None:
    for _ in range(50):
        worker, jobs = Worker(), []
        closing = threading.Thread(target=worker.close)
        closing.start()
        with contextlib.suppress(RuntimeError):
            while True:
                jobs.append(worker.submit(int))
        closing.join()
        assert [job.result(timeout=5) for job in jobs] == [0] * len(jobs)


def test_c8_none_is_an_item_like_any_other(worker: Worker) -> None:
    def items() -> Generator[int | None, None, None]:
        yield from (1, None, 2)

    async def collect() -> list[int | None]:
        return [item async for item in worker.astream(items)]

    assert list(worker.stream(items)) == [1, None, 2]
    assert asyncio.run(collect()) == [1, None, 2]


def test_a_process_ends_well_after_its_worker_had_an_engine() -> None:
    """MLX aborts a process that ends before the thread of an engine has let go of its streams."""
    code = """
import mlx_eagle
from mlx_eagle.worker import Worker
worker = Worker()
engine = worker.call(mlx_eagle.load, calibrate=False)
worker.call(engine.generate, "def", max_tokens=4)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# With a pair: whatever is cancelled, the conversation goes on as it should.


class Chat:
    """A conversation with a small pair on a worker, and what a new one answers to the same."""

    def __init__(self) -> None:
        self.worker = Worker()
        self.engine = self.worker.call(make_turning_engine)
        self.session = self.worker.call(self.engine.session)

    def ask(self, text: str, n_tokens: int = 16) -> Any:
        start = self.session.ask
        return self.worker.stream(lambda: start(text, max_tokens=n_tokens), self.cancel)

    def cancel(self) -> None:
        self.session.cancel()

    def check(self, text: str) -> None:
        """Ask something more: a fresh conversation with the same messages answers the same."""
        before = list(self.session.messages)
        answer = "".join(response.text for response in self.ask(text))
        fresh = self.worker.call(self.engine.session)
        fresh.messages = before
        stream = self.worker.stream(lambda: fresh.ask(text, max_tokens=16))
        assert "".join(response.text for response in stream) == answer
        assert self.session.messages == fresh.messages
        self.session.messages = self.session.messages[:4]  # or the prompts grow and grow


@pytest.fixture(scope="module")
def chat() -> Iterator[Chat]:
    own = Chat()
    yield own
    own.worker.close()


def shown(stop: Callable[[], None], responses: Any, after: float) -> str:
    """Return the text of a stream that is stopped after some seconds."""
    timer = threading.Timer(after, stop)
    timer.start()
    text = "".join(response.text for response in responses)
    timer.join()
    return text


def test_a_conversation_is_sound_after_a_thread_cancelled_it(
    chat: Chat, prompts: list[str]
) -> None:
    chance = random.Random(7)
    for prompt in prompts[:2]:
        n_before = len(chat.session.messages)
        stream = chat.ask(prompt, 400)
        seen = shown(stream.cancel, stream, chance.random() * 0.4)
        told = [message["content"] for message in chat.session.messages[n_before:]]
        assert told == ([prompt, seen] if told else [])
        assert bool(told) == bool(seen)
        chat.check(prompts[10])


def test_a_conversation_is_sound_after_a_task_was_cancelled(chat: Chat, prompts: list[str]) -> None:
    async def main(prompt: str, seconds: float) -> None:
        async def read() -> None:
            start = chat.session.ask
            async for _ in chat.worker.astream(lambda: start(prompt, max_tokens=400), chat.cancel):
                pass

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(read(), seconds)

    chance = random.Random(11)
    for prompt in prompts[4:6]:
        asyncio.run(main(prompt, chance.random() * 0.1))
        assert not chat.worker.is_busy
        chat.check(prompts[11])


def test_closing_a_stream_while_the_prompt_is_read_keeps_the_conversation(chat: Chat) -> None:
    chat.session.messages = []
    stream = chat.ask("What does zip do? " * 200)
    stream.close()
    assert chat.session.messages == []
    chat.check("What does zip do?")
