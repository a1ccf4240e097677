"""Rank 0 keeps an eye on its followers: who is gone, who stands still, which pass never ends.

MLX waits for ever for a rank that says nothing, and cannot be interrupted. So a thread listens to
each follower, and one looks at the clock. What they find is raised where rank 0 next comes by; if
it is stuck in MLX, the process is ended, after those who want to save something were called.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

from mlx_eagle.cluster.control import BEAT, SIGN_OF_LIFE, Channel
from mlx_eagle.cluster.ending import end_now
from mlx_eagle.cluster.messages import Beat, Done, Fault, Hello, Ready, Report, decode_report
from mlx_eagle.cluster.pass_times import PassTimes
from mlx_eagle.errors import ClusterError, UnsupportedTargetError
from mlx_eagle.files.quoting import one_line
from mlx_eagle.hub.download import to_stderr

_Report = TypeVar("_Report", Hello, Ready)

PAUSE = 0.1  # seconds between two looks
REMIND = 30.0  # seconds, after each of which it is said who is waited for
GRACE = 1.0  # seconds in which MLX mostly raises an error itself, once a rank is lost
TOO_LONG = "what all hosts compute together takes longer than"
UNFINISHED = "what all hosts compute together was not run to its end here"


class Patience(NamedTuple):
    """Seconds after which something is wrong.

    Attributes:
        start: until all followers have connected.
        silence: without a sign of life of a follower.
        least: of a forward pass, however fast the ones before were (`pass_times.py`).
        first: of the first pass, of which nothing is known, and of what is no pass.
    """

    start: float = 60.0
    silence: float = 10.0
    least: float = 30.0
    first: float = 300.0


PATIENCE = Patience()


class Peer:
    """A follower, seen from rank 0.

    Args:
        name: of its host.
        rank: its rank.
        channel: to it.
        memory: bytes that MLX may use there.

    Attributes:
        process: id of the process of this machine that is the follower, or reaches it; None if it
            was not started from here.
        lost: why it is of no more use; "" while it is.
        lost_at: moment in seconds at which that was found; infinite while it is of use.
        heard: moment in seconds of its last sign of life.
    """

    def __init__(self, name: str, rank: int, channel: Channel, memory: int) -> None:
        self.name, self.rank, self.channel, self.memory = name, rank, channel, memory
        self.process: int | None = None
        self.lost, self.lost_at, self.heard = "", math.inf, time.monotonic()
        self._expected: dict[int, int] = {}  # rows after a pass that is not answered, by its number
        self._said: SimpleQueue[Report] = SimpleQueue()
        self._answered = 0  # the order that it has answered last
        for work in (self._listen, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.name}"

    def answer(self, kind: type[_Report], order: int = 0, seconds: float = math.inf) -> _Report:
        """Wait for what it says next beside signs of life, which is to be of this kind.

        What answers an earlier order is passed over: whoever gave that did not wait for it.

        Args:
            kind: of the answer.
            order: that is answered; 0 for one without a number.
            seconds: until it counts as lost; for ever where a model is fetched and read, which may
                take hours: who is waited for is said meanwhile.

        Raises:
            ClusterError: if it is lost, could not do it, or says something else.
        """
        ends, looks = time.monotonic() + seconds, self._looks()
        while next(looks):
            if time.monotonic() > ends:
                self.lose(f"stands still or cannot be reached: no answer for {seconds:.0f} s")
            try:
                said = self._said.get(timeout=PAUSE)
            except Empty:
                if self.lost:
                    raise ClusterError(self.lost) from None
                continue
            number = said.number if isinstance(said, Ready) else 0
            if number < order:
                continue
            if not isinstance(said, kind) or number != order:
                raise ClusterError(f"{self} said {said.kind}, which was not asked for")
            if isinstance(said, Ready) and said.fault:
                raise ClusterError(f"{self}: {said.fault}")
            return said
        raise AssertionError("it is looked for ever")

    def settle(self, order: int) -> None:
        """Wait until it has answered an order, whatever it says, because nobody else waits for it.

        Raises:
            ClusterError: if it is lost.
        """
        looks = self._looks()
        while self._answered < order and next(looks):
            if self.lost:
                raise ClusterError(self.lost)
            time.sleep(PAUSE)

    def _looks(self) -> Iterator[bool]:
        """Yield True for ever, and say now and then who is waited for."""
        began = reminded = time.monotonic()
        while True:
            yield True
            now = time.monotonic()
            if now - reminded >= REMIND:
                to_stderr(f"still waiting for {self}, for {now - began:.0f} s")
                reminded = now

    def expect(self, number: int, rows: int) -> None:
        """Expect so many rows in the cache after a pass, whenever it says that it has ended."""
        self._expected[number] = rows

    def lose(self, reason: str) -> None:
        """Note why it is of no more use, if that is not known yet."""
        if not self.lost:
            self.lost_at = time.monotonic()
            self.lost = f"{self} {reason}"

    def _beat(self) -> None:
        """Show that this process is there and does not stand still, as long as that matters."""
        while not self.lost:
            try:
                self.channel.send(SIGN_OF_LIFE)
            except OSError:
                return  # as `_listen` finds out
            time.sleep(BEAT)

    def _listen(self) -> None:
        """Take in what it says, to its end."""
        try:
            while (data := self.channel.receive()) is not None:
                self.heard = time.monotonic()
                self._take(decode_report(data))
        except ClusterError as error:
            self.lose(f"is no follower of this version: {error}")
        self.lose("has ended or cannot be reached any more")

    def _take(self, said: Report) -> None:
        """Take in one message."""
        if isinstance(said, Fault):
            self.lose(f"ends: {said.reason}")
        elif isinstance(said, Done):
            rows = self._expected.pop(said.number, None)
            if rows is None:
                self.lose("says that a pass has ended which nobody asked for")
            elif said.rows != rows:
                self.lose(f"holds {said.rows} rows after a pass, rank 0 {rows}")
        elif not isinstance(said, Beat):
            self._said.put(said)
            self._answered = said.number if isinstance(said, Ready) else self._answered


def processes_of(peers: Sequence[Peer]) -> list[int]:
    """Return the ids of those processes of this machine that are followers, or reach them."""
    return [peer.process for peer in peers if peer.process is not None]


class Watch:
    """The thread that looks at the clock.

    Args:
        peers: all followers.
        patience: when something is wrong.

    Attributes:
        on_lost: called with the reason before the process is ended, in this order.
    """

    def __init__(self, peers: Sequence[Peer], patience: Patience) -> None:
        self.on_lost: list[Callable[[str], object]] = []
        self._peers, self._patience = peers, patience
        self._failure = ""
        self._since: float | None = None  # rank 0 is in MLX, waiting for the others
        self._limit = patience.first
        self._times: dict[int, PassTimes] = {}  # by target
        self._awake = time.monotonic()  # since then this process was not stopped
        self._stuck_since: float | None = None
        self._is_over = threading.Event()
        threading.Thread(target=self._run, name="mlx-eagle-watch", daemon=True).start()

    @property
    def lost(self) -> str:
        """Why the followers are of no more use; "" while they are.

        Who was lost first is named: others end because of that one.
        """
        first = min(self._peers, key=lambda peer: peer.lost_at, default=None)
        return self._failure or (first.lost if first else "")

    def fail(self, reason: str) -> None:
        """Note why the hosts are not in step any more, which cannot be mended."""
        self._failure = self.lost or reason

    @contextmanager
    def decisive(self, what: str, *alike: type[BaseException]) -> Iterator[None]:
        """Let nothing be computed any more after what fails inside, Ctrl-C included.

        The followers were told of something and wait for it, or what they have computed is wrong.

        Args:
            what: has happened then, in words.
            *alike: what is no failure, because all ranks find it alike, or that is found out later.
        """
        try:
            yield
        except BaseException as error:
            if not isinstance(error, alike):
                self.fail(f"{what} ({one_line(error) or type(error).__name__})")
            raise

    def check(self) -> None:
        """Raise what was found.

        Raises:
            ClusterError: if a follower is lost.
        """
        if self.lost:
            raise ClusterError(self._told(self.lost))

    @contextmanager
    def waiting(self, n_rows: int = 0, target: int = 0) -> Iterator[None]:
        """Wait for the others inside; what MLX raises for a lost rank is said in words.

        Whatever fails inside is decisive: the others are elsewhere from then on. Only a target
        that is refused by the self check is refused by all ranks alike.

        Args:
            n_rows: of the forward pass; 0 for anything else.
            target: whose pass it is: what one took says nothing of another's.

        Raises:
            ClusterError: if a follower is lost, or MLX fails here.
        """
        times = self._times.setdefault(target, PassTimes())
        known = times.limit(n_rows) if n_rows else None
        self._limit = self._patience.first if known is None else max(known, self._patience.least)
        self._since = start = time.monotonic()
        alike = (RuntimeError,) if n_rows else (RuntimeError, UnsupportedTargetError)
        try:
            with self.decisive(UNFINISHED, *alike):
                yield
        except RuntimeError as error:
            raise ClusterError(self._told(self._reason(error))) from error
        finally:
            self._since = None
        if n_rows:
            times.add(n_rows, time.monotonic() - max(start, self._awake))

    def end(self) -> None:
        """Look no more."""
        self._is_over.set()

    def _reason(self, error: RuntimeError) -> str:
        """Return which follower is lost, once that is known; else MLX failed on this host."""
        try:
            ends = time.monotonic() + GRACE
            while not self.lost and time.monotonic() < ends:
                time.sleep(PAUSE)
        finally:  # Ctrl-C included
            self.fail(f"{UNFINISHED} ({one_line(error)})")
        return self.lost

    def _told(self, reason: str) -> str:
        return f"{reason}; nothing more can be computed with these hosts: start anew"

    def _run(self) -> None:
        """Look at the clock until it is over."""
        last = time.monotonic()
        while not self._is_over.wait(PAUSE):
            now = time.monotonic()
            if now - last > 10 * PAUSE:  # this process was stopped itself, or had no core
                self._awake = now  # everybody is waited for anew
            last = now
            self._look(now)

    def _look(self, now: float) -> None:
        """See who is silent, and whether rank 0 is stuck."""
        for peer in self._peers:
            silent = now - max(peer.heard, self._awake)
            if silent > self._patience.silence:
                peer.lose(f"stands still or cannot be reached: no sign of life for {silent:.0f} s")
        since = self._since
        if since is None:
            self._stuck_since = None
            return
        if not self.lost and now - max(since, self._awake) > self._limit:
            self._give_up(f"{TOO_LONG} {self._limit:.0f} s, on some host")
        if self.lost:
            self._stuck_since = self._stuck_since or now
            if now - self._stuck_since > GRACE:
                self._give_up(self.lost)

    def _give_up(self, reason: str) -> None:
        """End the process: MLX waits for ever, and its wait cannot be left."""
        for call in [*self.on_lost]:
            with suppress(Exception):  # the others must be called as well
                call(reason)
        end_now(f"{reason}; ending, because MLX waits for it", processes_of(self._peers))
