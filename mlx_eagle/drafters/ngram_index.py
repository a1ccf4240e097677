"""Where a text has been before: the longest suffixes that occur earlier, and what followed them.

Hash chains, as in LZ77 coders (RFC 1951, section 4): each bucket holds the newest position whose
last ORDER tokens fall into it, each position the one before it in its bucket. A token is added, and
taken off again, in constant time; the lookup itself is prompt lookup's (github.com/apoorvumang/
prompt-lookup-decoding) with several matches at once. Tokens only: no arrays of MLX, no model.

Worked example, the text 5 6 7 8 5 6, whose last two tokens stood at positions 0 and 1 before:

    >>> index = NgramIndex()
    >>> index.extend([5, 6, 7, 8, 5, 6])
    >>> index.matches()
    [Match(end=1, length=2)]
    >>> [index.following(index.matches()[0], distance) for distance in range(5)]
    [7, 8, 5, 6, 7]
"""

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ORDER = 2  # tokens that must agree before anything is looked up
LONGEST = 32  # tokens of a match that are compared; longer ones are as good
MOST_TRIED = 32  # positions of a bucket that are compared, the newest first
MOST_KEPT = 8  # matches, the longest first
FEWEST_BUCKETS = 1 << 10
NOWHERE = -1


class Match(NamedTuple):
    """An earlier position, the newest of `length` tokens that are also the text's last ones."""

    end: int
    length: int


class NgramIndex:
    """A text, token by token, and where each pair of tokens stands in it."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._before = array("i")  # by position, the one before it in its bucket
        self._newest = array("i", [NOWHERE]) * FEWEST_BUCKETS  # by bucket
        self._followed: list[Match] = []  # what was found when the text had `_seen` tokens
        self._seen = 0

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens and of their index."""
        return sum(len(a) * a.itemsize for a in (self._tokens, self._before, self._newest))

    @property
    def tokens(self) -> Sequence[int]:
        """The text."""
        return self._tokens

    def extend(self, tokens: Iterable[int]) -> None:
        """Add the newest tokens."""
        start = len(self._tokens)
        self._tokens.extend(tokens)
        if len(self._tokens) > (n_buckets := len(self._newest)):
            while len(self._tokens) > n_buckets:
                n_buckets *= 4
            self._newest, self._before = array("i", [NOWHERE]) * n_buckets, array("i")
            start = 0
        for position in range(start, len(self._tokens)):
            self._add(position)

    def trim(self, length: int) -> None:
        """Forget all tokens after the first `length`."""
        while len(self._tokens) > length:
            position = len(self._tokens) - 1
            if position >= ORDER - 1:
                self._newest[self._bucket(position)] = self._before[position]
            self._tokens.pop()
            self._before.pop()
        if length < self._seen:
            self._followed, self._seen = [], 0

    def fork(self) -> "NgramIndex":
        """Return a copy that goes its own way."""
        twin = NgramIndex()
        twin._tokens, twin._before = self._tokens[:], self._before[:]
        twin._newest = self._newest[:]
        twin._followed, twin._seen = self._followed, self._seen
        return twin

    def matches(self) -> list[Match]:
        """Return where the text's last tokens stood before: the longest first, then the newest.

        What was found last time and goes on agreeing is found again, however often its last tokens
        have occurred since: a long copy is not lost among newer places that begin alike.
        """
        last = len(self._tokens) - 1
        found = self._going_on()
        if last >= ORDER:
            known = {match.end for match in found}
            position, left = self._before[last], MOST_TRIED
            while position != NOWHERE and left:
                if position not in known and (length := self._agreement(position)) >= ORDER:
                    found.append(Match(position, length))
                position, left = self._before[position], left - 1
        found.sort(key=lambda match: (-match.length, -match.end))
        self._followed, self._seen = found[:MOST_KEPT], last + 1
        return self._followed

    def following(self, match: Match, distance: int) -> int:
        """Return the token `distance` places after what followed a match directly.

        A copy that reaches the end of the text goes on with what it has copied by then.
        """
        period = len(self._tokens) - 1 - match.end
        return self._tokens[match.end + 1 + distance % period]

    def _going_on(self) -> list[Match]:
        """Return those of the last matches with which all tokens since then agree."""
        tokens, n_new = self._tokens, len(self._tokens) - self._seen
        new = tokens[self._seen :]
        return [
            Match(match.end + n_new, min(match.length + n_new, LONGEST))
            for match in self._followed
            if tokens[match.end + 1 : match.end + 1 + n_new] == new
        ]

    def _agreement(self, position: int) -> int:
        """Return how many tokens up to `position` agree with the text's last ones."""
        tokens, last = self._tokens, len(self._tokens) - 1
        most = min(position + 1, LONGEST)
        for length in range(most):
            if tokens[position - length] != tokens[last - length]:
                return length
        return most

    def _bucket(self, position: int) -> int:
        """Return the bucket of a position by its last tokens, ORDER of them."""
        before, token = self._tokens[position - 1], self._tokens[position]
        return (before * 0x9E3779B1 ^ token * 0x85EBCA77) % len(self._newest)

    def _add(self, position: int) -> None:
        """Enter the newest position into its bucket."""
        if position < ORDER - 1:
            self._before.append(NOWHERE)
            return
        bucket = self._bucket(position)
        self._before.append(self._newest[bucket])
        self._newest[bucket] = position
