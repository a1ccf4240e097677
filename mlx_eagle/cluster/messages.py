"""What rank 0 says to its followers, and they to it: bounded JSON, each field checked by its type.

A *batch* holds what has happened to the caches since the last one, in order, and mostly ends with
a `Run`: so a forward pass takes one message. Nothing that is read here is run as code.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mlx_eagle.errors import ClusterError

MAX_ROWS = 1 << 24  # tokens of a conversation
MAX_RANKS = 64
MAX_TAPS = 256

CacheId = Annotated[int, Field(ge=0, le=1 << 40)]
TargetId = Annotated[int, Field(ge=0, le=1 << 40)]
OrderId = Annotated[int, Field(ge=0, le=1 << 40)]
Rows = Annotated[int, Field(ge=0, le=MAX_ROWS)]
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
Rank = Annotated[int, Field(ge=0, lt=MAX_RANKS)]
Line = Annotated[str, Field(max_length=4096)]


class _Message(BaseModel):
    """A message: no field is left out, added or of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def check_rows(name: str, n_rows: int | None) -> None:
    """Refuse a number of tokens that messages do not hold.

    Args:
        name: of the option that sets it.
        n_rows: what it is set to.

    Raises:
        ClusterError: saying what they hold.
    """
    if n_rows is not None and n_rows > MAX_ROWS:
        raise ClusterError(
            f"{name} is {n_rows:,}; with hosts a conversation has {MAX_ROWS:,} tokens at most: "
            "give that or less"
        )


# From rank 0: what its caches do.


class Keeps(_Message):
    """What caches keep, as `KVOptions` says it."""

    bits: Annotated[int, Field(ge=1, le=16)] | None = None
    group_size: Annotated[int, Field(ge=1, le=1024)] = 64
    max_size: Rows | None = None


class New(_Message):
    """Make an empty cache of a target."""

    kind: Literal["new"] = "new"
    cache: CacheId
    target: TargetId
    keeps: Keeps = Keeps()


class Fork(_Message):
    """Make a cache that begins with the rows of another."""

    kind: Literal["fork"] = "fork"
    cache: CacheId
    source: CacheId


class Commit(_Message):
    """Keep undecided rows: the first `first` of them, then `others`."""

    kind: Literal["commit"] = "commit"
    cache: CacheId
    first: Rows
    others: list[Rows] = Field(default=[], max_length=MAX_ROWS)


class Trim(_Message):
    """Forget everything after the first `rows` rows."""

    kind: Literal["trim"] = "trim"
    cache: CacheId
    rows: Rows


class Checkpoint(_Message):
    """Remember the committed rows as a place to go back to."""

    kind: Literal["checkpoint"] = "checkpoint"
    cache: CacheId


class Pad(_Message):
    """Append and commit `rows` rows of zeros."""

    kind: Literal["pad"] = "pad"
    cache: CacheId
    rows: Rows


class Drop(_Message):
    """Forget a cache."""

    kind: Literal["drop"] = "drop"
    cache: CacheId


class Run(_Message):
    """Run the nodes of a tree through a target.

    Attributes:
        number: counts all forward passes, from 1 on.
        rows: committed rows of the cache, as rank 0 has them.
        tokens: of the nodes.
        parents: of the nodes; None for a chain.
        taps: boundaries whose streams rank 0 is sent, in a pipeline.
    """

    kind: Literal["run"] = "run"
    target: TargetId
    cache: CacheId
    number: Annotated[int, Field(ge=1, lt=1 << 31)]
    rows: Rows
    tokens: list[Token] = Field(min_length=1, max_length=MAX_ROWS)
    parents: list[Rows] | None = None
    taps: list[Rows] = Field(default=[], max_length=MAX_TAPS)


# From rank 0: what concerns the whole model.


class Files(_Message):
    """A model's files.

    Attributes:
        folder: where it is on rank 0, which is looked for first.
        name: by which it is fetched where there is no such folder.
        fingerprint: of its files, which must be the same ones.
    """

    folder: Line
    name: Line
    fingerprint: Line


class Compare(_Message):
    """Find a model and compare its files.

    Attributes:
        number: of the order, which the answer repeats.
        files: where they are, and what they must be.
    """

    kind: Literal["compare"] = "compare"
    number: OrderId
    files: Files


class Load(_Message):
    """Read the weights of a target; those that are held already stay.

    Attributes:
        number: of the order, which the answer repeats.
        target: by which it is known from now on.
        files: where they are, and what they must be.
        dtype: in which all ranks compute; None keeps what is stored.
        max_context: tokens that a text may have, if the user says so.
        parallel: of `LoadOptions`.
    """

    kind: Literal["load"] = "load"
    number: OrderId
    target: TargetId
    files: Files
    dtype: Annotated[str, Field(pattern="^(float32|float16|bfloat16)$")] | None
    max_context: Rows | None
    parallel: Literal["tensor", "pipeline"] = "tensor"


class Unload(_Message):
    """Forget a target, if it is held."""

    kind: Literal["unload"] = "unload"
    target: TargetId


class Join(_Message):
    """Join all ranks, as MLX's ring or JACCL wants them described.

    Attributes:
        backend: which of them; "jaccl-ring" is JACCL without a cable between all pairs.
        ring: by rank, its addresses "host:port".
        devices: for JACCL, by rank, the RDMA devices that lead to every rank.
    """

    kind: Literal["join"] = "join"
    backend: Literal["ring", "jaccl", "jaccl-ring"] = "ring"
    ring: list[list[Line]] = Field(min_length=2, max_length=MAX_RANKS)
    devices: list[list[Line | None]] = Field(default=[], max_length=MAX_RANKS)


class Check(_Message):
    """Try whether the target verifies trees, or only chains, in step with all ranks.

    With caches that do not keep everything it is tried only whether they can be read.
    """

    kind: Literal["check"] = "check"
    target: TargetId
    chains_only: bool
    keeps: Keeps = Keeps()


class Train(_Message):
    """Train a head together with all other ranks.

    Attributes:
        arguments: of the command line, the same on all ranks.
        folder: in which they were given.
    """

    kind: Literal["train"] = "train"
    arguments: list[Line] = Field(max_length=1024)
    folder: Line


class Measure(_Message):
    """Take part in `repeats` sums of `numbers` float32 numbers, one after the other."""

    kind: Literal["measure"] = "measure"
    numbers: Annotated[int, Field(ge=1, le=1 << 24)]
    repeats: Annotated[int, Field(ge=1, le=1000)]


class Stop(_Message):
    """End."""

    kind: Literal["stop"] = "stop"


# From a follower.


class Hello(_Message):
    """The first message: which rank, what is installed there, bytes that MLX may use."""

    kind: Literal["hello"] = "hello"
    rank: Rank
    versions: dict[str, Line]
    memory: Annotated[int, Field(ge=0)]


class Ready(_Message):
    """What was asked for is done, or why not.

    Attributes:
        number: of the order that is answered; 0 for `Join`, which comes first and has none.
        fault: why not.
        weights: bytes of this rank's weights, if it was to load some.
        peak: the most bytes that were in use meanwhile, beside what was in use before.
        chains_only: whether layers of this rank have states that cannot branch.
        window: positions that some layer of this rank sees at most; None if all see all.
    """

    kind: Literal["ready"] = "ready"
    number: OrderId = 0
    fault: Line = ""
    weights: Annotated[int, Field(ge=0)] = 0
    peak: Annotated[int, Field(ge=0)] = 0
    chains_only: bool = False
    window: Rows | None = None


class Done(_Message):
    """A forward pass has ended, with so many rows in its cache, undecided ones included."""

    kind: Literal["done"] = "done"
    number: int
    rows: Rows


class Beat(_Message):
    """The process is there."""

    kind: Literal["beat"] = "beat"


class Fault(_Message):
    """The follower ends, for this reason."""

    kind: Literal["fault"] = "fault"
    reason: Line


Note = New | Fork | Commit | Trim | Checkpoint | Pad | Drop | Unload
Order = Note | Run | Compare | Load | Join | Check | Measure | Train | Stop
Report = Hello | Ready | Done | Beat | Fault

_ORDERS = TypeAdapter(list[Annotated[Order, Field(discriminator="kind")]])
_REPORT: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="kind")])


def encode_orders(orders: Sequence[Order]) -> bytes:
    """Return a batch as it is sent."""
    return _ORDERS.dump_json(list(orders))


def decode_orders(data: bytes) -> list[Order]:
    """Return a batch that was received.

    Raises:
        ClusterError: if it is none.
    """
    try:
        return _ORDERS.validate_json(data)
    except ValidationError as error:
        raise ClusterError(f"rank 0 sent no message that is known here: {_what(error)}") from error


def encode_report(report: Report) -> bytes:
    """Return what a follower says as it is sent."""
    return _REPORT.dump_json(report)


def decode_report(data: bytes) -> Report:
    """Return what a follower said.

    Raises:
        ClusterError: if it is no such message.
    """
    try:
        return _REPORT.validate_json(data)
    except ValidationError as error:
        raise ClusterError(f"a follower sent no message: {_what(error)}") from error


def commit(cache: int, path: Sequence[int]) -> Commit:
    """Return the message for an accepted path: ascending indices of undecided rows."""
    first = next((i for i, row in enumerate(path) if row != i), len(path))
    return Commit(cache=cache, first=first, others=list(path[first:]))


def _what(error: ValidationError) -> str:
    """Return the first fault of a message in a few words."""
    fault = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"[:200]
