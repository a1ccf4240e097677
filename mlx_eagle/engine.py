"""`Engine`: a target, perhaps with a head, ready to generate; `loading.py` makes one."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from weakref import WeakSet

from mlx_eagle.answers.answer_format import read_format
from mlx_eagle.cache.options import KVOptions
from mlx_eagle.calibration.kernels import Kernels
from mlx_eagle.calibration.measure import Report
from mlx_eagle.calibration.planners import (
    AWAITED,
    Calibration,
    Planners,
    find_costs,
    measure_costs,
)
from mlx_eagle.calibration.store import Records
from mlx_eagle.drafters.base import Drafter
from mlx_eagle.drafters.make import make_drafter
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.load import AnyHead
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.heads.ngram import sources_of
from mlx_eagle.hub.download import to_stderr
from mlx_eagle.planner.policy import Sources
from mlx_eagle.sampling.grammar import Vocabulary
from mlx_eagle.session.forced_calls import CallGrammars
from mlx_eagle.session.identity import identify, identify_head, identify_settings
from mlx_eagle.session.limits import Budget, Limits, bytes_per_row
from mlx_eagle.session.prefix_cache import EXACT, PrefixCache
from mlx_eagle.session.prefix_files import PrefixFiles
from mlx_eagle.session.prompt import PLAIN_TEMPLATE, Prompt, Template
from mlx_eagle.session.responses import GenerationResult, Responses, whole_answer
from mlx_eagle.session.rows_folder import prefix_folder
from mlx_eagle.session.session import Session
from mlx_eagle.session.session_file import SETTINGS
from mlx_eagle.session.turn import Turn
from mlx_eagle.speculation import Speculation
from mlx_eagle.target.self_check import with_caches
from mlx_eagle.target.target import Target
from mlx_eagle.tree_shape import MAX_NODES


class EngineInfo(NamedTuple):
    """What is loaded, in words for a banner."""

    target: str
    target_precision: str
    head: str
    head_precision: str
    status: Speculation
    device: str
    is_demo: bool
    remedy: str = ""  # the command that finds out why a head drafts badly
    remarks: tuple[str, ...] = ()  # what is done otherwise than mlx-lm does, and what limits texts
    head_remarks: tuple[str, ...] = ()  # the same of a draft model, and what limits drafts
    recommended: Mapping[str, Any] = MappingProxyType({})  # the publisher's sampling
    hosts: str = ""  # among which the target is divided, and how fast they are reached

    @property
    def speculation(self) -> str:
        """Whether anything is drafted: "on", or "off: reason"."""
        return str(self.status)


class Engine:
    """A loaded target and head; conversations share them and keep their own caches.

    MLX ties arrays to the thread that made them: load and generate on the same thread.

    Attributes:
        template: what the chat template is given in every conversation.
        turn: which thread uses it.
        kernels: the few-row kernels of the target; None where nothing is known of them.
        prefix_cache: rows of earlier conversations, for new ones; None keeps none.
        sessions: conversations that somebody still has; forks of them are not listed.
        answer_format: how the model sets thoughts and calls of tools apart in its answers.
    """

    def __init__(
        self,
        target: Target,
        tokenizer: Any,
        head: AnyHead | None,
        info: EngineInfo,
        planners: Planners | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.target = target
        self.tokenizer = tokenizer
        self.head = head
        self.info = info
        max_depth = head.max_depth if head else MAX_NODES
        sources = sources_of(head) if head else Sources()
        self.planners = planners or Planners(
            max_depth=max_depth, chains_only=target.chains_only, sources=sources
        )
        self.limits = limits or Limits()
        self.template = PLAIN_TEMPLATE
        self.turn = Turn()
        self.kernels: Kernels | None = None
        self.prefix_cache: PrefixCache | None = None
        self.answer_format = read_format(tokenizer)
        self.sessions: WeakSet[Session] = WeakSet()
        self._variants: dict[KVOptions, Engine] = {}

    def session(
        self,
        system: str | None = None,
        *,
        template_args: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Session:
        """Start a conversation.

        Args:
            system: the system prompt, or None.
            template_args: what the chat template is given in every turn, beside what was given
                when the engine was loaded.
            tools: functions that answers may call, as JSON schemas (OpenAI's format).
        """
        args = {**self.template.args, **(template_args or {})}
        session = Session(self, system, Template(args, tools or self.template.tools))
        self.sessions.add(session)
        return session

    def load_session(self, path: str | Path) -> Session:
        """Return a conversation that was saved with `Session.save`, ready to go on.

        Raises:
            EagleError: if the file is damaged, or of another target, head or version.
        """
        session = Session.load(path, self)
        self.sessions.add(session)
        return session

    def with_kv(self, kv: KVOptions) -> "Engine":
        """Return an engine with the same weights whose conversations keep what `kv` says.

        Raises:
            UnsupportedTargetError: if the target's code cannot read such caches.
        """
        if kv == self.target.kv:
            return self
        if kv not in self._variants:
            self._variants[kv] = self._variant(kv)
        return self._variants[kv]

    def _variant(self, kv: KVOptions) -> "Engine":
        """Return an engine with the same weights and other caches."""
        target = with_caches(self.target, kv)
        sizes = bytes_per_row(target, self.head, self.limits.head_window)
        limits = self.limits._replace(bytes_per_row=sizes)
        known = self.planners
        # What rounds cost with such a cache is learnt apart, and not put on record as this one's.
        planners = Planners(
            known.calibration,
            known.max_depth,
            watch=known.watch,
            chains_only=target.chains_only,
            sources=known.sources,
        )
        planners.ranks = known.ranks
        variant = Engine(target, self.tokenizer, self.head, self.info, planners, limits)
        variant.template, variant.turn = self.template, self.turn
        variant.sessions = self.sessions
        return variant

    def make_drafter(self) -> Drafter | None:
        """Return a drafter with an empty cache, for a new conversation; None without a head."""
        if self.head is None:
            return None
        return make_drafter(self.head, self.target, self.limits.head_window)

    @cached_property
    def identity(self) -> dict[str, str]:
        """What computes the rows of conversations, by what it is of."""
        return {
            "target": identify(self.target.model),
            "head": identify_head(self.head),
            "KV cache": str(self.target.kv),
            "head window": str(self.limits.head_window or "none"),
            SETTINGS: identify_settings(self.target.model, self.head),
        }

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens as grammars see them."""
        return Vocabulary(self.tokenizer, self.target.n_logits)

    @cached_property
    def call_grammars(self) -> CallGrammars:
        """The grammars of calls of tools."""
        return CallGrammars(self.answer_format, lambda: self.vocabulary)

    def await_calibration(self) -> None:
        """Let a CPU decode plainly until this machine is measured, unless that is on record.

        The published costs, which a GPU drafts by meanwhile, say nothing of a CPU.
        """
        if self.head is not None and not self.planners.calibration.is_measured:
            self._take_costs(AWAITED, self.planners.records)

    def calibrate(self, report: Report | None = None) -> Calibration:
        """Measure anew what rounds cost on this machine, and keep it for later runs.

        Open conversations follow the new costs from their next answer on, also those of engines
        with other caches.

        Args:
            report: called with (steps done, steps in all), before every sample too; what it raises
                ends the measurement and leaves the costs as they were.

        Raises:
            EagleError: if there is no head, so that nothing is drafted.
        """
        head = self._required_head()
        with self.turn.taken():
            if self.kernels is not None:
                self.kernels.try_out(to_stderr)
            records = self._records()
            drafter = make_drafter(head, self.target)
            costs = measure_costs(self.target, drafter, records, report)
            ranks = self._measure_ranks(records)
        self._adopt(costs, records, ranks)
        return costs

    def catch_up(self, report: Report | None = None) -> Calibration:
        """Do what `calibrate` does, as far as it is not on record, for an engine that put it off.

        Args:
            report: as for `calibrate`.

        Raises:
            EagleError: if there is no head, so that nothing is drafted.
        """
        head, known = self._required_head(), self.planners
        with self.turn.taken():
            if self.kernels is not None:
                self.kernels.put_on(to_stderr, may_try=True)
            records = self._records()
            costs = find_costs(self.target, make_drafter(head, self.target), records, report)
        self._adopt(costs, records, known.ranks)
        return costs

    def _required_head(self) -> AnyHead:
        """Return the head; raises EagleError if there is none."""
        if self.head is None:
            raise EagleError(
                f"there is nothing to calibrate: speculation is {self.info.speculation}"
            )
        return self.head

    def _records(self) -> Records | None:
        """Return what is on record of the pair with the kernels that run now."""
        known = self.planners.records
        return known.with_kernels(self.target.few_rows.identity) if known else None

    def _adopt(
        self, costs: Calibration, records: Records | None, ranks: list[list[float]] | None
    ) -> None:
        """Plan by what was found from now on, with other caches too."""
        self._take_costs(costs, records)
        for variant in self._variants.values():
            variant._take_costs(costs, variant.planners.records)
        for engine in (self, *self._variants.values()):
            engine.planners.ranks = ranks

    def _measure_ranks(self, records: Records | None) -> list[list[float]] | None:
        """Measure how often each rank of Medusa heads is right, and keep it for later runs."""
        if not isinstance(self.head, MedusaHead):
            return None
        # Only for such heads: what the doctor needs takes a second to import.
        from mlx_eagle.doctor.doctor import write_texts
        from mlx_eagle.doctor.rank_accuracy import rank_accuracies

        texts = write_texts(self.target, self.tokenizer, lambda *_: None)
        ranks = rank_accuracies(self.head, self.target, texts)
        if records is not None:
            with suppress(EagleError):  # they hold for this run then
                records.save_ranks(ranks)
        return ranks

    def _take_costs(self, costs: Calibration, records: Records | None) -> None:
        """Plan by other costs from now on."""
        known = self.planners
        self.planners = Planners(
            costs,
            known.max_depth,
            records,
            known.watch,
            chains_only=known.chains_only,
            sources=known.sources,
        )
        self.info = self.info._replace(status=self.planners.outlook(0))

    def budget(self, held_rows: int) -> Budget | None:
        """Return how many tokens a conversation may have; None if nothing bounds it.

        Kept rows of others take no room from it: they are given up where it is needed.

        Args:
            held_rows: rows that its cache holds already, and shares with no other.
        """
        kept = self.prefix_cache.nbytes if self.prefix_cache is not None else 0
        return self.limits.budget(held_rows, kept)

    def keep_prefixes(
        self, max_bytes: int, disk_bytes: int = 0, salt: str = "", *, exact: bool = False
    ) -> None:
        """Keep rows of prompts and answers from now on, for later ones that begin alike.

        Args:
            max_bytes: of the rows in memory, those of conversations that go on not counted.
            disk_bytes: of files in the cache folder, which later runs read; 0: none.
            salt: rows on disk are found with the same one alone.
            exact: use only rows that reading a prompt anew would give to the last bit.

        Raises:
            EagleError: if the cache folder cannot be written.
        """
        files = None
        if disk_bytes:
            salt += EXACT if exact else ""
            files = PrefixFiles(prefix_folder(), self.identity, disk_bytes, salt)
        self.prefix_cache = PrefixCache(max_bytes, files, is_exact=exact)

    def stream_generate(self, prompt: Prompt, **options: Any) -> Responses:
        """Stream an answer, token by token; see `Session.stream_generate`."""
        session = self.session()
        stream = session.stream_generate(prompt, **options)
        kept = self.prefix_cache
        return stream if kept is None else _keeping(stream, session, kept)

    def generate(self, prompt: Prompt, **options: Any) -> GenerationResult:
        """Return a whole answer; the options are those of `Session.stream_generate`."""
        return whole_answer(self.stream_generate(prompt, **options))


def _keeping(stream: Responses, session: Session, kept: PrefixCache) -> Responses:
    """Pass an answer on, and keep the rows of its conversation, which is over then."""
    try:
        yield from stream
    finally:
        stream.close()
        kept.keep(session.prefix)
