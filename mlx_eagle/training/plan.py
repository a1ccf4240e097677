"""What a training will be, before anything long begins: sizes, updates, memory, disk."""

import math
from typing import NamedTuple

from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import ALGORITHMS
from mlx_eagle.heads.load import Head
from mlx_eagle.training.features.row_data import count_updates
from mlx_eagle.training.memory import MemoryEstimate, check_memory, estimate_memory
from mlx_eagle.training.options import HeadOptions
from mlx_eagle.training.read_target import ReadTarget
from mlx_eagle.training.recipe import Recipe
from mlx_eagle.training.run.checkpoint import trained_arrays
from mlx_eagle.training.texts.corpus import Corpus
from mlx_eagle.training.texts.packing import Batches


class Plan(NamedTuple):
    """What will be trained.

    Attributes:
        kind: of the head, in words.
        n_parameters: numbers that are trained.
        n_texts: to train on.
        n_tokens: of them.
        n_trained: tokens that the head learns to foresee.
        n_heldout: texts to measure on.
        n_rows: rows that the texts fill.
        length: tokens of a row.
        n_updates: of the weights.
        rows_per_update: of all processes together.
        memory: estimated for training, besides the target.
        target_bytes: of the target's weights.
        memory_limit: bytes for both together; None is not limited.
    """

    kind: str
    n_parameters: int
    n_texts: int
    n_tokens: int
    n_trained: int
    n_heldout: int
    n_rows: int
    length: int
    n_updates: int
    rows_per_update: int
    memory: MemoryEstimate
    target_bytes: int
    memory_limit: int | None


def plan_training(
    recipe: Recipe,
    read: ReadTarget,
    head: Head,
    options: HeadOptions,
    corpus: Corpus,
    n_processes: int,
) -> Plan:
    """Return what a training will be.

    Args:
        recipe: what is asked for.
        read: the target.
        head: before its first update, with the weights that are trained not frozen.
        options: that it is trained with.
        corpus: the texts.
        n_processes: that train together.

    Raises:
        EagleError: if no text is long enough, or it may take more memory than it is allowed to.
    """
    loop, length = recipe.loop, recipe.data.length
    lengths = [len(example.tokens) for example in corpus.train]
    packed = Batches(lengths, length, loop.batch * n_processes, loop.seed)
    if not (n_rows := packed.epoch(0).n_rows):
        raise EagleError("every text is shorter than three tokens: there is nothing to train on")
    shapes = {name: weight.shape for name, weight in trained_arrays(head).items()}
    memory = estimate_memory(head.config, shapes, recipe.data, options, loop)
    if recipe.memory_limit is not None:
        check_memory(memory, recipe.memory_limit - read.n_bytes, options, loop)
    return Plan(
        kind=ALGORITHMS[head.config.algorithm],
        n_parameters=sum(math.prod(shape) for shape in shapes.values()),
        n_texts=len(corpus.train),
        n_tokens=sum(lengths),
        n_trained=sum(int(example.trained.sum()) for example in corpus.train),
        n_heldout=len(corpus.heldout),
        n_rows=n_rows,
        length=length,
        n_updates=count_updates(packed, loop),
        rows_per_update=loop.batch * n_processes * loop.accumulate,
        memory=memory,
        target_bytes=read.n_bytes,
        memory_limit=recipe.memory_limit,
    )
