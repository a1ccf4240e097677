"""Features of all texts, computed once and kept in a folder.

A folder holds shards, each with the features of a run of whole texts, and `index.json`: what all
of it was computed from, and the size and sha256 of every complete shard. Which texts a shard holds
follows from the lengths of the texts, so what is missing is known, and whoever was interrupted goes
on where it was. Reading maps the shards into memory.
"""

import errno
import hashlib
import json
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mlx_eagle.errors import EagleError
from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.json_files import read_json
from mlx_eagle.files.plain_files import hash_file
from mlx_eagle.files.quoting import listed, quote_value
from mlx_eagle.target.target import Target
from mlx_eagle.training.batch import Example, Features
from mlx_eagle.training.features.shard import in_16_bits, map_shard, write_shard

VERSION = 1  # of the folder
SHARD_BYTES = 1 << 30
SHARD_TOKENS = 1 << 16  # at most: so much is computed again after an interruption
MAX_INDEX_BYTES = 8 << 20
_INDEX = "index.json"

Compute = Callable[[np.ndarray], Features]
Progress = Callable[[int, int], None]


class Contents(NamedTuple):
    """What features are of.

    Attributes:
        target: what identifies the target, quantization included, in words of the caller.
        dtype: in which it computes.
        boundaries: the head's taps, then that of the final state.
        width: D.
        examples: the texts, in order; each has a token at least.
    """

    target: str
    dtype: str
    boundaries: tuple[int, ...]
    width: int
    examples: Sequence[Example]

    @property
    def has_final_twice(self) -> bool:
        """Whether the head's last tap is the final state, which is kept once."""
        return self.boundaries[-2:-1] == self.boundaries[-1:]

    @property
    def token_bytes(self) -> int:
        """Bytes that the features of a token take."""
        return size_of(1, len(set(self.boundaries)), self.width)

    def fingerprint(self) -> dict[str, Any]:
        """Return what must be the same for features to be used again, as JSON holds it."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(len(example.tokens).to_bytes(8, "little"))
            digest.update(np.asarray(example.tokens, dtype="<i4").tobytes())
        return {
            "version": VERSION,
            "target": self.target,
            "dtype": self.dtype,
            "boundaries": list(self.boundaries),
            "width": self.width,
            "texts": len(self.examples),
            "tokens": sum(len(example.tokens) for example in self.examples),
            "tokens_sha256": digest.hexdigest(),
        }


def contents_of(target: Target, identity: str, examples: Sequence[Example]) -> Contents:
    """Return what the features of texts will be of.

    Args:
        target: as `tap_for_features` returns it.
        identity: what identifies it, in words of the caller.
        examples: the texts.
    """
    row = target.embedding(mx.array([0]))
    dtype = str(row.dtype).removeprefix("mlx.core.")
    return Contents(identity, dtype, target.taps, row.shape[-1], examples)


def size_of(n_tokens: int, n_streams: int, width: int) -> int:
    """Return how many bytes the features of `n_tokens` take on disk, but for headers.

    Args:
        n_tokens: of all texts.
        n_streams: taps of the head and the final state; one that is both counts once.
        width: D.
    """
    return n_tokens * (2 * n_streams * width + 4)


class _Shard(NamedTuple):
    """The texts from `first` to `stop` - 1, and the row at which each of them starts."""

    first: int
    stop: int
    rows: tuple[int, ...]  # one more than there are texts

    @property
    def n_tokens(self) -> int:
        """Rows of the shard."""
        return self.rows[-1]


class FeatureStore:
    """Features in a folder, complete or not: `complete` computes what is missing.

    Args:
        folder: where they are, or will be; it need not exist.
        contents: what they are of.
        verify: compare checksums of all shards, which reads them all; sizes are always compared.
        shard_tokens: most tokens of a shard; a longer text has one of its own.

    Attributes:
        damaged: a line for each shard that is not what was written, which is computed again.

    Raises:
        EagleError: if the folder holds something else.
    """

    reads_ahead = True

    def __init__(
        self,
        folder: Path,
        contents: Contents,
        *,
        verify: bool = False,
        shard_tokens: int | None = None,
    ) -> None:
        self.folder, self.contents = folder, contents
        self.damaged: list[str] = []
        most = min(SHARD_BYTES // contents.token_bytes, SHARD_TOKENS)
        lengths = [len(example.tokens) for example in contents.examples]
        self._shards = list(_plan(lengths, shard_tokens or max(most, 1)))
        self._firsts = [shard.first for shard in self._shards]
        self._mapped: dict[int, Features] = {}
        self._about = contents.fingerprint() | {"shards": len(self._shards)}
        self._kept = self._read_index()
        self._drop_damaged(verify)

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of all features, but for headers."""
        return self.contents.token_bytes * sum(shard.n_tokens for shard in self._shards)

    @property
    def missing_bytes(self) -> int:
        """Bytes of what is not computed yet, but for headers."""
        return self.contents.token_bytes * sum(self._shards[i].n_tokens for i in self._missing)

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing."""
        return not self._missing

    @property
    def _missing(self) -> list[int]:
        """The shards that are not kept."""
        return [i for i in range(len(self._shards)) if _file_name(i) not in self._kept]

    def complete(self, compute: Compute, progress: Progress) -> None:
        """Compute what is missing; what is complete stays, however this ends.

        Args:
            compute: returns the features of tokens [L].
            progress: called after each text with the tokens done and those of all texts.

        Raises:
            EagleError: if the disk has too little room, or becomes full or fails.
        """
        self.check_room()
        total = sum(shard.n_tokens for shard in self._shards)
        done = total - sum(self._shards[i].n_tokens for i in self._missing)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_partial_files()
            self._write_index()
            for index in self._missing:
                texts = []
                for features in self._computed(index, compute):
                    texts.append(features)
                    done += len(features.choices)
                    progress(done, total)
                self._keep(index, texts)
        except OSError as error:
            raise EagleError(self._why_stopped(error)) from error

    def check_room(self) -> None:
        """Refuse to begin if the disk has less room than the missing features take.

        Raises:
            EagleError: naming both sizes.
        """
        above = next(f for f in (self.folder, *self.folder.absolute().parents) if f.exists())
        free = shutil.disk_usage(above).free
        if self.missing_bytes > free:
            raise EagleError(
                f"features of these texts need {bytes_text(self.missing_bytes)} and the disk of "
                f"{self.folder} has {bytes_text(free)} left: free space, choose a folder on "
                "another disk, use fewer texts, or compute features whenever they are needed"
            )

    def read(self, example: int, start: int, stop: int) -> Features:
        """Return the features of the tokens `start` to `stop` - 1 of a text, on disk until used."""
        index = bisect_right(self._firsts, example) - 1
        shard = self._shards[index]
        row, end = shard.rows[example - shard.first : example - shard.first + 2]
        assert 0 <= start <= stop <= end - row, f"text {example} has {end - row} tokens"
        if index not in self._mapped:
            self._mapped[index] = map_shard(self.folder / _file_name(index))
        taps, final, choices = (part[row + start : row + stop] for part in self._mapped[index])
        if self.contents.has_final_twice:
            taps = np.concatenate([taps, final], axis=1) if taps.shape[1] else final
        return Features(taps, final, choices)

    def _computed(self, index: int, compute: Compute) -> Iterator[Features]:
        """Yield the features of the texts of a shard, as they are kept."""
        shard, width = self._shards[index], self.contents.width
        for example in self.contents.examples[shard.first : shard.stop]:
            features = compute(example.tokens)
            if self.contents.has_final_twice:
                features = features._replace(taps=features.taps[:, :-width])
            yield in_16_bits(features)

    def _keep(self, index: int, texts: list[Features]) -> None:
        """Write a shard, and into the index that it is complete."""
        name = _file_name(index)
        written = write_shard(self.folder / name, texts)
        self._kept[name] = {"bytes": written.n_bytes, "sha256": written.sha256}
        self._write_index()

    def _remove_partial_files(self) -> None:
        """Remove what a process left that was killed while it wrote."""
        for file in self.folder.glob(".*.partial.*"):
            file.unlink()

    def _write_index(self) -> None:
        """Write which shards are complete."""
        with new_file(self.folder / _INDEX) as partial:
            complete = dict(sorted(self._kept.items()))
            partial.write_text(
                json.dumps({"contents": self._about, "complete": complete}, indent=1)
            )

    def _read_index(self) -> dict[str, dict[str, Any]]:
        """Return the complete shards: their sizes and checksums, by name.

        Raises:
            EagleError: if the folder holds features of something else, or no features.
        """
        file = self.folder / _INDEX
        if not file.exists():
            if self.folder.exists() and any(_visible(self.folder)):
                raise EagleError(
                    f"{self.folder} has files and no {_INDEX} of features: choose another folder"
                )
            return {}
        index = read_json(file, max_bytes=MAX_INDEX_BYTES)
        about, kept = index.get("contents"), index.get("complete")
        self._refuse_others(about if isinstance(about, dict) else {})
        entries = kept if isinstance(kept, dict) else {}
        return {name: entry for name, entry in entries.items() if isinstance(entry, dict)}

    def _refuse_others(self, about: dict[str, Any]) -> None:
        """Raise if an index is of other contents, and say in what they differ."""
        ours = self._about
        differing = [name for name in ours if about.get(name) != ours[name]]
        if differing:
            facts = (
                f"{name} {_shown(about.get(name))} instead of {_shown(ours[name])}"
                for name in differing
            )
            raise EagleError(
                f"{self.folder} holds features of something else ({listed(facts, 3)}): choose "
                "another folder, or remove it first"
            )

    def _drop_damaged(self, verify: bool) -> None:
        """Forget shards that are not what was written."""
        for name, entry in list(self._kept.items()):
            if fault := _fault(self.folder / name, entry, verify):
                self.damaged.append(f"{self.folder / name} {fault}: it is computed again")
                del self._kept[name]

    def _why_stopped(self, error: OSError) -> str:
        """Return what to do about a disk that is full or fails."""
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if is_full else (error.strerror or str(error))
        what = f"free {bytes_text(self.missing_bytes)}" if is_full else "see to it"
        return (
            f"cannot write features to {self.folder}: {why}. {len(self._kept)} of "
            f"{len(self._shards)} shards are kept: {what} and start again to go on from there"
        )


def _plan(lengths: Sequence[int], most: int) -> Iterator[_Shard]:
    """Yield shards of whole texts, of `most` tokens at most unless a single text is longer."""
    first = 0
    while first < len(lengths):
        stop, n_tokens = first + 1, lengths[first]
        while stop < len(lengths) and n_tokens + lengths[stop] <= most:
            n_tokens += lengths[stop]
            stop += 1
        yield _Shard(first, stop, tuple(accumulate(lengths[first:stop], initial=0)))
        first = stop


def _file_name(index: int) -> str:
    """Return what the file of a shard is called."""
    return f"features-{index:05}.safetensors"


def _visible(folder: Path) -> Iterator[Path]:
    """Yield what a folder holds, but for hidden files."""
    return (item for item in folder.iterdir() if not item.name.startswith("."))


def _fault(file: Path, entry: dict[str, Any], verify: bool) -> str:
    """Return in what a file is not what its entry says, or ""."""
    if not file.is_file():
        return "is missing"
    if (n_bytes := file.stat().st_size) != entry.get("bytes"):
        return f"has {n_bytes} bytes instead of {quote_value(entry.get('bytes'))}"
    return "has another sha256" if verify and hash_file(file) != entry.get("sha256") else ""


def _shown(value: Any) -> str:
    """Return a fact about contents as it may be shown."""
    if isinstance(value, list):
        return "[" + listed(quote_value(item) for item in value) + "]"
    return quote_value(value)


def bytes_text(n_bytes: int) -> str:
    """Return a size in the unit that suits it."""
    if n_bytes < 1e6:
        return f"{n_bytes / 1e3:.1f} kB"
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes < 1e9 else f"{n_bytes / 1e9:.1f} GB"
