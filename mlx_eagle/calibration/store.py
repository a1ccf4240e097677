"""What is kept between runs about a pair: the costs of this machine, and counts of acceptance.

Small JSON files in the cache folder. Costs belong to a chip, a version of MLX and the exact target,
head and precision; acceptance belongs to the pair alone. A file that does not fit, or cannot be
read, counts as missing: what it holds is measured again.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mlx_eagle.errors import EagleError
from mlx_eagle.files.atomic import new_file
from mlx_eagle.planner.acceptance_model import Acceptance
from mlx_eagle.planner.cost_model import Costs

VERSION = 1  # of the files; others are ignored
KERNELS = "few-row kernels"  # what costs depend on beside machine and pair


RANKS = "ranks"  # among the ways of choosing tokens


def _is_share(value: object) -> bool:
    return isinstance(value, float | int) and 0 <= value <= 1


class Identity(NamedTuple):
    """What costs and acceptance depend on.

    Attributes:
        machine: chip, and the versions of MLX, mlx-lm and macOS.
        pair: what identifies target and head: precisions, names, sizes and dates of their files.
    """

    machine: Mapping[str, str]
    pair: Mapping[str, str]


def this_machine() -> dict[str, str]:
    """Return what the costs of a machine depend on."""
    info = mx.device_info()
    versions = {name: metadata.version(name) for name in ("mlx", "mlx-lm")}
    device = str(mx.default_device().type).removeprefix("DeviceType.")
    # Which kernels there are depends on macOS too, whatever the version of MLX.
    system = {"macos": macos} if (macos := platform.mac_ver()[0]) else {}
    return {"chip": str(info["device_name"]), "device": device, **versions, **system}


class Records:
    """The records of one pair on this machine.

    Args:
        folder: where they are kept; it need not exist.
        identity: of machine and pair.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.identity, self._folder = identity, folder
        both = {**identity.machine, **identity.pair}
        self.costs_file = folder / "costs" / f"{digest(both)}.json"
        self.acceptance_file = folder / "acceptance" / f"{digest(identity.pair)}.json"

    def with_kernels(self, identity: str) -> "Records":
        """Return the records of the same pair with these few-row kernels; "" are none."""
        machine = {k: v for k, v in self.identity.machine.items() if k != KERNELS}
        if identity:
            machine[KERNELS] = identity
        return Records(self._folder, self.identity._replace(machine=machine))

    def costs(self) -> tuple[Costs, str] | None:
        """Return the stored costs and the day of their measurement, if there are any."""
        fields = read_record(self.costs_file)
        try:
            return (Costs.from_dict(fields["costs"]), str(fields["measured"])) if fields else None
        except (EagleError, KeyError):
            return None

    def save_costs(self, costs: Costs) -> None:
        """Store costs measured today, in place of others.

        Raises:
            EagleError: if the folder cannot be written to.
        """
        about = {"machine": dict(self.identity.machine), "pair": dict(self.identity.pair)}
        today = date.today().isoformat()
        write_record(self.costs_file, {**about, "measured": today, "costs": costs.to_dict()})

    def acceptance(self, kind: str) -> Acceptance:
        """Return what is known of the pair when tokens are chosen in this way, if only a prior."""
        fields = read_record(self.acceptance_file)
        try:
            return Acceptance.from_dict(fields[kind]) if fields else Acceptance()
        except (EagleError, KeyError):
            return Acceptance()

    def ranks(self) -> list[list[float]] | None:
        """Return how often each rank is right, by depth, if that was measured."""
        found = (read_record(self.acceptance_file) or {}).get(RANKS)
        is_table = isinstance(found, list) and all(
            isinstance(ranks, list) and ranks and all(_is_share(share) for share in ranks)
            for ranks in found
        )
        return found if found and is_table else None

    def save_ranks(self, ranks: list[list[float]]) -> None:
        """Store how often each rank is right, by depth.

        Raises:
            EagleError: if the folder cannot be written to.
        """
        fields = read_record(self.acceptance_file) or {"pair": dict(self.identity.pair)}
        write_record(self.acceptance_file, fields | {RANKS: ranks})

    def save_acceptance(self, kinds: Mapping[str, Acceptance]) -> None:
        """Store what is known, by way of choosing tokens; other ways stay as they are.

        Raises:
            EagleError: if the folder cannot be written to.
        """
        fields = read_record(self.acceptance_file) or {"pair": dict(self.identity.pair)}
        fields |= {kind: acceptance.to_dict() for kind, acceptance in kinds.items()}
        write_record(self.acceptance_file, fields)


def digest(facts: Mapping[str, str]) -> str:
    """Return a file name for what a record depends on."""
    return hashlib.sha256(json.dumps(dict(facts), sort_keys=True).encode()).hexdigest()[:24]


def read_record(file: Path) -> dict[str, Any] | None:
    """Return the fields of a file of this version, or None."""
    try:
        fields = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and fields.get("version") == VERSION else None


def write_record(file: Path, fields: dict[str, Any]) -> None:
    """Write a file whole or not at all.

    Raises:
        EagleError: if the folder cannot be written to.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with new_file(file, mode=0o600) as partial:
            partial.write_text(json.dumps({"version": VERSION, **fields}, indent=1))
    except OSError as error:
        raise EagleError(
            f"{file.parent} cannot keep what was measured ({error.strerror}); "
            "MLX_EAGLE_CACHE names another folder"
        ) from error
