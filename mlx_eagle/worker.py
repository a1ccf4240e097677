"""A thread that an engine lives on, for programs whose own thread must stay free.

MLX arrays belong to the thread that made them, so an engine is loaded and used on one thread. A
worker owns that thread: calls run on it one after another, and streams are handed over item by
item. It knows no models: what it runs are functions.

    with Worker() as worker:
        session = worker.call(lambda: mlx_eagle.load().session())
        for response in worker.stream(lambda: session.ask("What does zip do?"), session.cancel):
            print(response.text, end="", flush=True)

With asyncio, `await worker.acall(...)` and `async for response in worker.astream(...)`: the event
loop never waits for the engine, and cancelling the task ends the generation.
"""

import asyncio
import atexit
import contextlib
import queue
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import closing
from functools import partial
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

Start = Callable[[], Generator[T, None, None]]
Cancel = Callable[[], None]

TICK = 0.05  # seconds


class Worker:
    """A thread of its own for an engine and everything that touches it."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job[Any] | None] = queue.SimpleQueue()
        self._newest: Future[Any] | None = None
        self._is_closed, self._closing = False, threading.Lock()
        # A daemon, or Python would wait for it before it calls what ends it.
        self._thread = threading.Thread(target=self._serve, name="mlx-eagle", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_busy(self) -> bool:
        """Whether anything runs or waits to run."""
        return self._newest is not None and not self._newest.done()

    @property
    def is_awaited(self) -> bool:
        """Whether something waits to run: what runs meanwhile may want to give way."""
        return not self._jobs.empty()

    def submit(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> Future[T]:
        """Let the thread call a function when it is free; returns at once.

        Raises:
            RuntimeError: if the worker is closed.
        """
        job = _Job(partial(function, *args, **options), Future[T]())
        with self._closing:  # or the job could come after the one that ends the thread
            if self._is_closed:
                raise RuntimeError("the worker is closed; make another one")
            self._newest = job.future
            self._jobs.put(job)
        return job.future

    def call(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Return what a function returns on the thread, or raise what it raises."""
        job = self.submit(function, *args, **options)
        _wait_for(job)
        return job.result()

    def stream(self, start: Start[T], cancel: Cancel | None = None) -> "Stream[T]":
        """Return the items of a generator that runs on the thread.

        Args:
            start: returns the generator; called on the thread.
            cancel: ends the generator soon, whatever it is doing, called from any thread; such as
                `Session.cancel`. Without it a stream that is cancelled ends after its next item.
        """
        return Stream(self, start, cancel)

    async def acall(self, function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """Do what `call` does without holding up the event loop.

        A call that was cancelled before it began never runs; one that runs goes on to its end.
        """
        return await asyncio.wrap_future(self.submit(function, *args, **options))

    async def astream(self, start: Start[T], cancel: Cancel | None = None) -> AsyncGenerator[T]:
        """Do what `stream` does without holding up the event loop.

        Cancelling the task, or closing the iterator, cancels the generator and waits for its end.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[T | _End] = asyncio.Queue()

        def hand_over(item: T | _End) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there
                loop.call_soon_threadsafe(items.put_nowait, item)

        running, is_over = _Running(self, start, cancel, hand_over), False
        try:
            while not isinstance(item := await items.get(), _End):
                yield item
            is_over = True
            running.check()
        finally:
            running.cancel()
            while not is_over:
                is_over = isinstance(await items.get(), _End)

    def close(self) -> None:
        """End the thread once all that was asked of it is done, and wait for that.

        Called by what runs on the thread itself, it ends after that, and there is nothing to wait.
        """
        atexit.unregister(self.close)
        with self._closing:
            if not self._is_closed:
                self._jobs.put(None)
            self._is_closed = True
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _serve(self) -> None:
        """Run jobs until there are no more."""
        while (job := self._jobs.get()) is not None:
            job.run()
            del job  # with what it refers to, before the next one comes
        _end_streams()


class _Job(NamedTuple, Generic[T]):
    """A call, and where its result goes."""

    call: Callable[[], T]
    future: Future[T]

    def run(self) -> None:
        """Call, unless that was cancelled; what is raised is for whoever asks for the result."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.call())
        except BaseException as error:  # it is raised where the result is asked for
            self.future.set_exception(error)


def _end_streams() -> None:
    """End what MLX keeps for this thread, which aborts the process if it ends meanwhile."""
    if "mlx.core" in sys.modules:
        import mlx.core as mx

        mx.clear_streams()


class _End:
    """The end of a stream; any item, None too, is one that the generator yields."""


class Stream(Iterator[T]):
    """The items of a generator on a worker's thread, in the order in which it yields them.

    `cancel` ends it and leaves what it still has to say to be read, `close` throws that away. After
    `close` the generator has ended, so that what it worked on can be used again.
    """

    def __init__(self, worker: Worker, start: Start[T], cancel: Cancel | None) -> None:
        self._items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
        self._is_over = False
        self._running = _Running(worker, start, cancel, self._items.put)

    def __next__(self) -> T:
        """Wait for the next item; raises what the generator raises."""
        if self._is_over:
            raise StopIteration
        item = self._next()
        if isinstance(item, _End):
            self._is_over = True
            self._running.check()
            raise StopIteration
        return item

    def _next(self) -> "T | _End":
        """Return the next item, or the end; wakes up as `_wait_for` does."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._items.get(timeout=TICK)

    def cancel(self) -> None:
        """Let the generator end soon; callable from any thread, and from a signal handler."""
        self._running.cancel()

    def close(self) -> None:
        """End the generator and wait for it."""
        self._is_over = True
        self._running.cancel()
        self._running.wait()


class _Running(Generic[T]):
    """A generator on a worker's thread, whose items are handed over there, and then the end."""

    def __init__(
        self,
        worker: Worker,
        start: Start[T],
        cancel: Cancel | None,
        hand_over: "Callable[[T | _End], None]",
    ) -> None:
        self._start, self._cancel, self._hand_over = start, cancel, hand_over
        self._lock = threading.RLock()  # a signal handler may cancel what this thread cancels
        self._is_open = self._is_cancelled = False
        self.job = worker.submit(self._run)
        self.job.add_done_callback(self._tell)

    def check(self) -> None:
        """Raise what the generator raised, if it did."""
        if not self.job.cancelled():
            self.job.result()

    def wait(self) -> None:
        """Wait until the generator has ended."""
        _wait_for(self.job)

    def cancel(self) -> None:
        """End the generator soon, or do not begin it."""
        with self._lock:
            self._is_cancelled = True
            # Only while it is open: what comes next on the thread is none of our business.
            if not self.job.cancel() and self._is_open and self._cancel is not None:
                self._cancel()

    def _run(self) -> None:
        """Run the generator and hand its items over; on the worker's thread."""
        with self._lock:
            if self._is_cancelled:
                return
        with closing(self._start()) as generator:
            self._open(True)
            try:
                self._pass_on(generator)
            finally:
                self._open(False)

    def _pass_on(self, generator: Iterator[T]) -> None:
        """Hand over what a generator yields."""
        for item in generator:
            self._hand_over(item)
            if self._is_cancelled and self._cancel is None:
                return

    def _open(self, is_open: bool) -> None:
        """Note whether the generator can be cancelled; do it if that was asked for meanwhile."""
        with self._lock:
            self._is_open = is_open
            if is_open and self._is_cancelled and self._cancel is not None:
                self._cancel()

    def _tell(self, _: Future[None]) -> None:
        self._hand_over(_End())


def _wait_for(job: Future[Any]) -> None:
    """Wait until a job is done.

    The system may give a signal, such as Ctrl-C, to any thread, but Python handles it on the main
    one, once that wakes up: so it does now and then.
    """
    while not job.done():
        wait([job], TICK)
