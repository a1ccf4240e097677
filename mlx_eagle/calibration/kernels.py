"""Few-row kernels of a target on this machine: found on record, or tried, and put on its layers.

A kernel can hang a GPU or end the process that launched it, so it is tried in a process of its own
(`kernel_trial.py`). What is right and fast there is then tried in whole forward passes of the
loaded target. Where anything goes wrong MLX's own kernels are used, and one line says why.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlx_eagle
from mlx_eagle.calibration.kernel_forward import rows_that_pay
from mlx_eagle.calibration.kernel_request import ask, capture
from mlx_eagle.calibration.store import digest, read_record, this_machine, write_record
from mlx_eagle.errors import EagleError
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.hub.head_choice import fingerprint
from mlx_eagle.kernels.gpu import NEWEST_GENERATION, gpu_generation
from mlx_eagle.kernels.sites import Site, find_sites
from mlx_eagle.kernels.trial import NOT_FASTER
from mlx_eagle.kernels.verdicts import Table, from_fields, to_fields
from mlx_eagle.target.load import precision
from mlx_eagle.target.target import Target

AUTO, OFF, FORCE = "auto", "off", "force"

Say = Callable[[str], None]


class TargetSource(NamedTuple):
    """Where a target was loaded from, and how.

    Attributes:
        folder: the model.
        dtype: of `LoadOptions`.
        adapter: folder of a LoRA adapter, or None.
    """

    folder: Path
    dtype: str | None
    adapter: str | None


class Found(NamedTuple):
    """What was found of the kernels.

    Attributes:
        table: verdicts on products and attention.
        forward: time of a whole forward pass with kernels over that without, by number of rows.
        fault: why none is used although it was tried; "" where some are, or none is faster.
    """

    table: Table
    forward: dict[int, float]
    fault: str = ""


class Kernels:
    """The kernels of one target.

    Args:
        target: loaded; kernels are put on its layers.
        source: where it was loaded from.
        mode: "auto", "off" or "force", as in `LoadOptions`.

    Attributes:
        found: what was found; None where nothing was tried.
        status: in words for a banner.

    Raises:
        EagleError: if kernels are forced where there can be none.
    """

    def __init__(self, target: Target, source: TargetSource, mode: str) -> None:
        self._target, self._source, self._mode = target, source, mode
        self.found: Found | None = None
        self.status = "off"
        self._sites: list[Site] = []
        if mode != OFF:
            self._look()

    @property
    def are_possible(self) -> bool:
        """Whether there is anything to try."""
        return bool(self._sites)

    def put_on(self, say: Say, *, may_try: bool) -> None:
        """Put the kernels that are on record on the target's layers, or try them first.

        Args:
            say: told in one line of a trial and of its result.
            may_try: False leaves MLX's kernels where nothing is on record.
        """
        if not self.are_possible:
            return
        known = self._recorded()
        if known is not None:
            self._use(known)
        elif may_try:
            self.try_out(say)
        else:
            self.status = "off: not tried on this machine yet (mlx-eagle calibrate does)"

    def try_out(self, say: Say) -> None:
        """Try the kernels now, keep what is found, and use those that pay.

        Args:
            say: told in one line that they are tried, and what came of it.
        """
        if not self.are_possible:
            return
        self._target.few_rows.release()
        say("few-row kernels: tried once on this machine, which takes up to two minutes")
        found = self._try()
        try:
            write_record(self._file, {"kernels": _to_fields(found)})
        except EagleError as error:
            say(f"few-row kernels: the result is lost with this run: {error}")
        self._use(found)
        say(f"few-row kernels: {self.status}")

    def _look(self) -> None:
        """Find out whether kernels are possible here."""
        generation, why = gpu_generation(), ""
        if generation is None:
            why = "they are for Apple GPUs, and this is another device"
        elif generation > NEWEST_GENERATION and self._mode == AUTO:
            self.status = "off: nobody has tried them on this GPU; --kernels force does"
            return
        elif not (sites := find_sites(self._target.model)):
            why = "no layer of the target is quantized in 4 or 8 bits as they read it"
        else:
            self._sites = sites
            return
        self.status = f"off: {why}"
        if self._mode == FORCE:
            raise EagleError(f"few-row kernels were forced, but {why}: leave --kernels force out")

    def _try(self) -> Found:
        """Try the kernels in a process of their own, then in whole forward passes."""
        try:
            return self._find()
        except (RuntimeError, ValueError) as error:  # MLX's, for what a GPU refuses or cannot
            return Found(Table(), {}, " ".join(str(error).split())[:200])

    def _find(self) -> Found:
        """Try the kernels; errors of MLX are the caller's matter."""
        is_timed = self._mode == AUTO
        try:
            request = capture(self._target, self._sites)
            table = ask(request, *self._source, is_timed=is_timed)
        except EagleError as error:
            return Found(Table(), {}, str(error))
        plan = table.plan()
        if not plan.rows:
            return Found(table, {})
        self._target.few_rows.put_on(self._target.model, plan)
        try:
            forward = rows_that_pay(self._target, plan.rows, is_timed=is_timed)
        except EagleError as error:
            return Found(table, {}, str(error))
        return Found(table, forward)

    def _use(self, found: Found) -> None:
        """Put kernels on for the numbers of rows that pay."""
        self.found = found
        plan = found.table.plan(list(found.forward))
        if not plan.rows:
            self._target.few_rows.release()
            self.status = f"off: {found.fault or _why_none(found.table)}"
            return
        self._target.few_rows.put_on(self._target.model, plan, self._note_stall)
        self.status = f"on for {', '.join(map(str, plan.rows))} rows"

    def _note_stall(self) -> None:
        """Keep for later runs that rounds with the kernels stall here."""
        assert self.found is not None, "kernels run, so they were found"
        self.found = Found(self.found.table, {}, "rounds with them stalled")
        self.status = f"off: {self.found.fault}"
        try:
            write_record(self._file, {"kernels": _to_fields(self.found)})
        except EagleError:  # then it is found out again
            return

    def _recorded(self) -> Found | None:
        """Return what is on record, if it can be read."""
        fields = read_record(self._file)
        try:
            return _from_fields(fields["kernels"]) if fields else None
        except (EagleError, KeyError, TypeError, ValueError, AttributeError):
            return None

    @property
    def _file(self) -> Path:
        """Where what is found is kept: by machine, kernel and target."""
        source = self._source
        facts = {
            **this_machine(),
            "generation": str(gpu_generation()),
            "kernels": _code(),
            "mode": self._mode,
            "target": fingerprint(source.folder),
            "precision": precision(self._target.model),
            "dtype": str(source.dtype),
            "KV cache": str(self._target.kv),
            "adapter": fingerprint(Path(source.adapter)) if source.adapter else "",
        }
        return cache_folder() / "kernels" / f"{digest(facts)}.json"


def _code() -> str:
    """Return a digest of the code of all kernels, of what tries them and what puts them on."""
    package = Path(mlx_eagle.__file__).parent
    files = [*(package / "kernels").glob("*.*"), *(package / "calibration").glob("kernel*.py")]
    files += [package / "target" / "few_rows.py", package / "target" / "attention_hook.py"]
    texts = [file.read_bytes() for file in sorted(files) if file.is_file()]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]


def _why_none(table: Table) -> str:
    """Return why no kernel of a table is used: what is wrong with them, or that none is faster."""
    faults = [reason for reason in table.reasons if reason != NOT_FASTER]
    return faults[0] if faults else "not faster than those of MLX here"


def _to_fields(found: Found) -> dict[str, Any]:
    """Return what was found, ready for JSON."""
    forward = {str(n): ratio for n, ratio in found.forward.items()}
    return {"table": to_fields(found.table), "forward": forward, "fault": found.fault}


def _from_fields(fields: dict[str, Any]) -> Found:
    """Return what `_to_fields` gave; raise an error of any of several kinds if it is not that."""
    forward = {int(n): float(ratio) for n, ratio in fields["forward"].items()}
    return Found(from_fields(fields["table"]), forward, str(fields["fault"]))
