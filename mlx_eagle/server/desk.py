"""Where requests wait for the engine, one answer at a time, and where answers are cancelled.

The task of an answer owns the engine's stream and fills an outbox, which whoever delivers the
answer reads. A client that goes away cancels the answer; the task then ends by itself, and the
next request begins.
"""

import asyncio
import time
from collections.abc import Callable, Generator
from contextlib import aclosing

from mlx_eagle.engine import Engine
from mlx_eagle.server.answer_events import AnswerJob
from mlx_eagle.server.events import End, Event, Failed
from mlx_eagle.server.faults import failure
from mlx_eagle.server.outbox import Outbox
from mlx_eagle.server.prepare import Prepared
from mlx_eagle.server.refusal import LOST, RefusalError
from mlx_eagle.server.waiting import AnswerSeconds, FairQueue
from mlx_eagle.worker import Worker

LONGEST_WAIT = 600.0  # seconds in the queue
STOPPING = Failed("stopping", "the server is stopping; ask again once it runs")
WAITED = Failed("stopping", f"the request waited {LONGEST_WAIT:.0f} s for its turn; try again")


class Running:
    """One request, from its acceptance to the end of its answer.

    Attributes:
        prepared: what is answered.
        outbox: with what has happened.
        accepted: when it was accepted, by `time.monotonic`.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.outbox = Outbox()
        self.accepted = time.monotonic()
        self.turn = asyncio.Event()
        self.job: AnswerJob | None = None
        self._is_out_of_time = False
        self._end_instead: Failed | None = None
        self._is_cancelled = False

    def cancel(self, why: Failed | None = None) -> None:
        """End the answer soon.

        Args:
            why: what its client is told; None where nobody listens.
        """
        self._is_cancelled = True
        self._end_instead = self._end_instead or why
        self.turn.set()
        self.cancel_job()

    def begin(self, job: AnswerJob) -> None:
        """Note what makes the answer, and end it if that was asked for before; from any thread."""
        self.job = job
        if self._is_out_of_time:
            job.time_out()
        if self._is_cancelled:
            job.cancel()

    def cancel_job(self) -> None:
        """End what the engine does for this answer; from any thread."""
        job = self.job  # once: it may be let go meanwhile
        if job is not None:
            job.cancel()

    def time_out(self) -> None:
        """End the answer soon, as if it were as long as it may be."""
        self._is_out_of_time = True
        if self.job is not None:
            self.job.time_out()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has ended it."""
        return self._is_cancelled

    def put(self, event: Event) -> None:
        """Hand over an event; the last one says why an answer was ended from here."""
        is_last = isinstance(event, End | Failed)
        self.outbox.put(self._end_instead if is_last and self._end_instead else event)


class Desk:
    """The queue before one engine.

    Args:
        engine: that answers.
        worker: its thread.
        most_waiting: requests; more are refused.
        max_seconds: of an answer; None: any.
        before: called on the engine's thread before every answer, when none takes memory.
    """

    def __init__(
        self,
        engine: Engine,
        worker: Worker,
        *,
        most_waiting: int = 16,
        max_seconds: float | None = None,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._worker, self._before = engine, worker, before
        self._most_waiting, self._max_seconds = most_waiting, max_seconds
        self._queue: FairQueue[Running] = FairQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._seconds = AnswerSeconds()
        self._started = 0.0
        self.now: Running | None = None
        self.is_stopping = False

    @property
    def n_waiting(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    def check_running(self) -> None:
        """Refuse a request once the server is stopping, or a machine of its model is lost.

        Raises:
            RefusalError: then.
        """
        if lost := self.lost:
            raise RefusalError("lost", LOST.format(lost))
        if self.is_stopping:
            raise RefusalError(STOPPING.kind, STOPPING.message)

    @property
    def lost(self) -> str:
        """Why nothing can be answered any more; "" while it can."""
        return self._engine.target.lost

    def check_room(self) -> None:
        """Refuse a request that could not even wait.

        Raises:
            RefusalError: if the queue is full, or the server is stopping.
        """
        self.check_running()
        if self.n_waiting >= self._most_waiting and self.now is not None:
            elapsed = time.monotonic() - self._started
            raise RefusalError(
                "busy",
                f"{self.n_waiting} requests wait for the model already; try again later",
                retry_after=round(self._seconds.expected(elapsed) * (self.n_waiting + 1)),
            )

    def accept(self, prepared: Prepared) -> Running:
        """Let a request wait for its turn and be answered.

        Raises:
            RefusalError: as `check_room` does.
        """
        self.check_room()
        running = Running(prepared)
        self._queue.put(prepared.asked.who, running)
        task = asyncio.create_task(self._answer(running))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._call_next()
        return running

    async def stop(self, grace: float) -> None:
        """Accept nothing more, and end what runs after `grace` seconds."""
        self.is_stopping = True
        why = Failed("lost", LOST.format(self.lost)) if self.lost else STOPPING
        for waiting in list(self._queue):
            waiting.cancel(why)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        if self.now is not None:
            self.now.cancel(why)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _call_next(self) -> None:
        """Let the next one have its turn, if it is nobody's."""
        if self.now is None and (following := self._queue.take()) is not None:
            self.now, self._started = following, time.monotonic()
            following.turn.set()

    async def _answer(self, running: Running) -> None:
        """Wait for the turn, and answer."""
        try:
            async with asyncio.timeout(LONGEST_WAIT):
                await running.turn.wait()
        except TimeoutError:
            running.cancel(WAITED)
        try:
            if running.is_cancelled:
                running.put(STOPPING)
            else:
                await self._run(running)
        except Exception as error:
            running.put(failure(running.prepared.asked.request_id, error))
        finally:
            self._leave(running)

    async def _run(self, running: Running) -> None:
        """Let the engine answer."""
        is_cut = True
        loop = asyncio.get_running_loop()

        def report(event: Event) -> None:
            loop.call_soon_threadsafe(running.put, event)

        def start() -> Generator[Event]:
            self._before()
            job = AnswerJob(self._engine, running.prepared, report)
            running.begin(job)
            return job.events()

        limit = self._max_seconds
        timer = loop.call_later(limit, running.time_out) if limit is not None else None
        try:
            async with aclosing(self._worker.astream(start, running.cancel_job)) as events:
                async for event in events:
                    if isinstance(event, End | Failed):  # once it has its answer, a client goes
                        is_cut = running.is_cancelled
                    running.put(event)
        finally:
            if timer is not None:
                timer.cancel()
        self._seconds.add(time.monotonic() - self._started, is_cut=is_cut)

    def _leave(self, running: Running) -> None:
        """Make room for the next one."""
        running.job = None  # they refer to each other, and its rows must not wait for a collection
        self._queue.remove(running)
        if self.now is running:
            self.now = None
        self._call_next()
