"""Which published heads are known for a target: facts from a data file, not from the network.

`known_heads.json` was collected by hand and is dated; whether a repository still exists shows when
it is downloaded. Quantized copies of a target are recognised by their names, not listed.
"""

import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

# What the names of quantized copies add to the target's: 4bit, MLX-8bit, MXFP4-Q8, and for
# DWQ, distilled quantization, a version or the day it was made as month and day.
_DAY = r"(0[1-9]|1[0-2])[0-3]\d(\d\d|\d{4})?"
_PRECISION = re.compile(
    rf"(-(mlx|[2-8]bit|q[2-8]|bf16|fp16|fp32|mxfp[48]|nvfp4|awq|gs?(32|64|128)|"
    rf"dwq(-v\d|-{_DAY})?))+$",
    re.IGNORECASE,
)
RUNS = ("recommended", "usable")


class KnownHead(NamedTuple):
    """A published head.

    Attributes:
        repo: `owner/name` on the hub.
        targets: the names of the one target it was made for.
        format: whose layout its files have.
        status: "recommended", "usable", "broken" (it accepts next to nothing) or "unsupported".
        reason: why it has that status, in one line.
        defects: what is known to be wrong with its files or unusual about it.
        acceptance_length: as published, in tokens per target forward; None if it was not.
        acceptance_source: who published that, and how it was measured.
    """

    repo: str
    targets: tuple[str, ...]
    format: str
    status: str
    reason: str
    defects: tuple[str, ...]
    acceptance_length: float | None
    acceptance_source: str


def known_heads(target: str | Path) -> list[KnownHead]:
    """Return the heads that were published for a target, best first.

    Args:
        target: `owner/name` or `owner/name@revision` on the hub, or a folder whose place in the
            hub's cache, or else whose `config.json`, tells the name.
    """
    name = _hub_name(target)
    table = _read_table()
    for heads in table["heads"]:
        if name and any(_is_copy(name, of, table["copy_owners"]) for of in heads[0].targets):
            return list(heads)
    return []


def default_head(target: str | Path) -> KnownHead | None:
    """Return the head to use for a target: the first one that is not known to fail."""
    return next((head for head in known_heads(target) if head.status in RUNS), None)


def original_of(target: str | Path) -> str | None:
    """Return the publisher's own repository of a target, which it may be a copy of, if known."""
    heads = known_heads(target)
    return heads[0].targets[0] if heads else None


def all_heads() -> list[list[KnownHead]]:
    """Return the heads of every target in the table, a list per target, best first."""
    heads: list[list[KnownHead]] = _read_table()["heads"]
    return heads


def when_collected() -> str:
    """Return the year and month in which the table was collected, e.g. "2026-08"."""
    return str(_read_table()["dated"])


def _read_table() -> dict[str, Any]:
    """Return `dated`, `copy_owners` and `heads`, a list for each target."""
    data = json.loads(files("mlx_eagle.hub").joinpath("known_heads.json").read_text("utf-8"))
    heads = [[_head(entry, row["targets"]) for entry in row["heads"]] for row in data["table"]]
    return {"dated": data["dated"], "copy_owners": data["copy_owners"], "heads": heads}


def _head(entry: dict[str, Any], targets: list[str]) -> KnownHead:
    """Return one entry of the table; a length that was not published is not in the file."""
    unmeasured = {"acceptance_length": None, "acceptance_source": ""}
    lists = {"targets": tuple(targets), "defects": tuple(entry["defects"])}
    return KnownHead(**(unmeasured | entry | lists))


def _hub_name(target: str | Path) -> str | None:
    """Return the name on the hub, without a revision, or None for a folder that has none."""
    folder = Path(os.path.expanduser(target))
    if not folder.is_dir():
        return str(target).partition("@")[0]
    # Only folders need the readers of convert/, which load MLX.
    from mlx_eagle.files.folders import source_name
    from mlx_eagle.files.json_files import read_json

    name: Any = source_name(folder)
    if "/" not in name and (folder / "config.json").is_file():
        name = read_json(folder / "config.json").get("_name_or_path")
    return name if isinstance(name, str) and name.count("/") == 1 else None


def _is_copy(name: str, target: str, copy_owners: list[str]) -> bool:
    """Say whether a repository is the target itself, or the target in another precision.

    `mlx-community/Qwen3-8B-4bit` is a copy of `Qwen/Qwen3-8B`; `Qwen3-8B-Base-4bit` and
    `Qwen3-4B-Instruct-2507-4bit` are copies of other models.
    """
    if name.lower() == target.lower():
        return True
    owner, _, model = name.lower().partition("/")
    target_owner, _, target_model = target.lower().partition("/")
    is_trusted = owner in (target_owner, *copy_owners)
    return is_trusted and _PRECISION.sub("", model) == target_model
