"""One update of a head's weights: gradients of its batches, averaged, clipped, and applied.

Both halves can be compiled (`mx.compile`): everything that they read and change besides their
arguments is named to it, the weights, the optimizer's state and the random numbers' state. Batches
of another shape are compiled anew.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.optimizers import MultiOptimizer
from mlx.utils import tree_map

from mlx_eagle.training.batch import Batch, Figures, Objective
from mlx_eagle.training.run.optimizer import clipped
from mlx_eagle.training.run.processes import Processes
from mlx_eagle.training.run.reports import Sums


class Pending(NamedTuple):
    """An update that is being computed.

    Attributes:
        norm: of the gradients, before they were clipped.
        parts: batch, loss and figures, for each batch.
    """

    norm: mx.array
    parts: list[tuple[Batch, mx.array, Figures]]

    def sums(self) -> Sums:
        """Wait for the update and return the figures of this process' batches."""
        first, *others = (Sums.of(*part) for part in self.parts)
        return sum(others, first)


class Step:
    """Makes updates of a head's trainable weights.

    Args:
        head: whose trainable weights are updated in place; they are float32.
        objective: what is made smaller; it reads the head.
        optimizer: of these weights.
        clip: largest norm of the gradients; 0 for any.
        processes: who else trains the same head.
        is_compiled: see the module; other kernels round differently.
    """

    def __init__(
        self,
        head: nn.Module,
        objective: Objective,
        optimizer: MultiOptimizer,
        clip: float,
        processes: Processes,
        is_compiled: bool = True,
    ) -> None:
        self._processes = processes
        self._state = [head.state, optimizer.state]
        differentiated = nn.value_and_grad(head, objective)

        def gradients(*batch: mx.array) -> tuple[mx.array, tuple[mx.array, ...], Any]:
            (loss, figures), found = differentiated(Batch(*batch))
            return loss * 1, _apart(figures), found

        def apply(found: Any) -> mx.array:
            found, norm = clipped(found, clip)
            optimizer.update(head, found)
            return norm

        self._gradients, self._apply = gradients, apply
        if is_compiled:
            # The head counts as an output too: differentiating puts placeholders into it.
            seen = [head.state, mx.random.state]
            self._gradients = mx.compile(gradients, inputs=seen, outputs=seen)
            self._apply = mx.compile(apply, inputs=self._state, outputs=self._state)

    def submit(self, batches: Sequence[Batch]) -> Pending:
        """Begin an update with the mean of the gradients of all batches of all processes."""
        total, parts = None, []
        for batch in batches:
            loss, figures, found = self._gradients(*batch)
            total = found if total is None else tree_map(mx.add, total, found)
            parts.append((batch, loss, Figures(*figures)))
            if len(batches) > 1:
                mx.eval(total, loss, figures)  # or the activations of all batches would be kept
        if len(batches) > 1:
            total = tree_map(lambda gradient: gradient / len(batches), total)
        norm = self._apply(self._processes.average(total))
        mx.async_eval(norm, self._state, [part[1:] for part in parts])
        return Pending(norm, parts)


class Measure:
    """Figures of batches that nothing is learned from."""

    def __init__(self, head: nn.Module, objective: Objective, is_compiled: bool = True) -> None:
        def figures(*batch: mx.array) -> tuple[mx.array, tuple[mx.array, ...]]:
            loss, found = objective(Batch(*batch))
            return loss * 1, _apart(found)

        self._figures = figures
        if is_compiled:
            random = mx.random.state
            self._figures = mx.compile(figures, inputs=[head.state, random], outputs=[random])

    def __call__(self, batch: Batch) -> Sums:
        """Return the figures of a batch."""
        loss, figures = self._figures(*batch)
        return Sums.of(batch, loss, Figures(*figures))


def _apart(figures: Figures) -> tuple[mx.array, ...]:
    """Return the same figures as results of their own.

    MLX 0.32.4 cannot compile a differentiated function that gives out what it computes twice.
    """
    return tuple(part * 1 for part in figures)


def seed_random_numbers(seed: int, update: int, rank: int) -> None:
    """Seed MLX's random numbers as an update needs them, whatever was drawn before."""
    digest = hashlib.blake2b(f"{seed} {update} {rank}".encode(), digest_size=8).digest()
    mx.random.seed(int.from_bytes(digest, "big"))
