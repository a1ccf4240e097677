"""Where batches get features from: the disk, or the target whenever they are needed."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from mlx_eagle.training.batch import Example, Features


class FeatureSource(Protocol):
    """Features of any piece of any text.

    Attributes:
        reads_ahead: whether `read` may run on another thread than the one that trains. MLX arrays
            belong to the thread that made them, so what computes may not.
    """

    reads_ahead: bool

    def read(self, example: int, start: int, stop: int) -> Features:
        """Return the features of the tokens `start` to `stop` - 1 of a text."""
        ...


class ComputedFeatures:
    """Features that are computed when they are asked for, a whole text at a time.

    Args:
        examples: the texts.
        compute: returns the features of tokens [L].
        most_texts: texts whose features are remembered: pieces of a long text come one by one.
    """

    reads_ahead = False

    def __init__(
        self,
        examples: Sequence[Example],
        compute: Callable[[np.ndarray], Features],
        most_texts: int = 8,
    ) -> None:
        self._examples, self._compute, self._most_texts = examples, compute, most_texts
        self._newest: OrderedDict[int, Features] = OrderedDict()  # the last used one is last

    def read(self, example: int, start: int, stop: int) -> Features:
        """Return the features of the tokens `start` to `stop` - 1 of a text."""
        held = self._newest.get(example)
        if held is None or len(held.choices) < stop:  # of a long text no more than is needed
            self._newest[example] = self._compute(self._examples[example].tokens[:stop])
        self._newest.move_to_end(example)
        if len(self._newest) > self._most_texts:
            self._newest.popitem(last=False)
        return Features(*(part[start:stop] for part in self._newest[example]))
