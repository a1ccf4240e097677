"""What heads are worth: how often they foresee given texts, and tokens per round as they decode.

n-alpha is teacher-forced: at every position of held-out texts a head drafts a chain from its own
states, and step n counts where its likeliest token is the target's choice after the text's tokens.
All heads are unrolled alike, whatever steps they were trained with. The acceptance length is that
of the runtime: tokens per forward of the target, its own included.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

import mlx_eagle
from mlx_eagle.hub.head_choice import prepare_head
from mlx_eagle.training.batch import Batch, Example
from mlx_eagle.training.features.compute import compute, tap_for_features, taps_of
from mlx_eagle.training.features.row_data import Texts
from mlx_eagle.training.features.source import ComputedFeatures
from mlx_eagle.training.objectives.eagle3 import make_objective
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import HeadOptions
from mlx_eagle.training.run.reports import Sums
from mlx_eagle.training.texts.conversations import read_conversations
from mlx_eagle.training.texts.examples import Encoder
from mlx_eagle.tree import TreeShape

STEPS = 7
LENGTH = 512  # tokens of a row, as the fixture's head was trained and measured
ROWS = 4  # of a batch
JOINED_ROWS = 30  # that the fixture's trainer measures
SEPARATOR = "<|endoftext|>"  # that it puts between texts
TREES = (TreeShape(4, 1, 4), TreeShape(4, 4, 8), TreeShape(6, 10, 59))  # of the fixture's oracles


class Loop(NamedTuple):
    """How the real loop is measured.

    Attributes:
        prompts: questions.
        trees: what is drafted.
        n_tokens: of each answer.
        until_end: stop where the answer ends. The fixture's oracles go on after it.
    """

    prompts: Sequence[str]
    trees: Sequence[TreeShape] = TREES
    n_tokens: int = 128
    until_end: bool = False


def load_engine(target: Path, head: Path, adapter: Path | None = None) -> Any:
    """Return a pair in float32; the head may be converted, as published, or a training's folder."""
    trained = head / "head-full"
    folder = prepare_head(trained if trained.exists() else head, target, bits=None)
    return mlx_eagle.load(target, folder, dtype="float32", calibrate=False, adapter_path=adapter)


def read_prompts(file: Path, n: int) -> list[str]:
    """Return the first n prompts of a file of JSON Lines."""
    return [json.loads(line)["prompt"] for line in file.read_text().splitlines()][:n]


def separate_texts(tokenizer: Any, file: Path, train_on: str = "all") -> list[Example]:
    """Return conversations as training sees them: none sees another.

    Args:
        tokenizer: mlx-lm's wrapper.
        file: JSON Lines of conversations.
        train_on: "all" counts every token, "answers" those of answers.
    """
    encoder = Encoder(tokenizer, context=None, train_on=train_on, template_args={})
    return encoder.examples(read_conversations([file]))


def joined_rows(tokenizer: Any, file: Path, most: int = JOINED_ROWS) -> list[Example]:
    """Return rows as the fixture's trainer measures them: cut from all texts in one, whole.

    Args:
        tokenizer: mlx-lm's wrapper.
        file: JSON Lines of conversations.
        most: rows, of 512 tokens each.
    """
    end = tokenizer.encode(SEPARATOR, add_special_tokens=False)
    tokens = list[int]()
    for conversation in read_conversations([file]):
        tokens += [*tokenizer.apply_chat_template(list(conversation.messages)), *end]
    starts = range(0, min(len(tokens) - LENGTH, most * LENGTH), LENGTH)
    rows = (np.array(tokens[start : start + LENGTH], dtype=np.int32) for start in starts)
    return [Example(row, np.ones(LENGTH, dtype=bool)) for row in rows]


def measure_n_alpha(engine: Any, examples: Sequence[Example], steps: int = STEPS) -> Sums:
    """Return the figures of the engine's head on some texts."""
    head, target = engine.head, engine.target
    objective = make_objective(head, Teacher.of(target), _options(head, steps))
    twin = tap_for_features(target, taps_of(head))
    try:
        found = [
            Sums.of(batch, *objective(batch))
            for batch in _batches(examples, ComputedFeatures(examples, partial(compute, twin)))
        ]
    finally:
        twin.release()
    return sum(found[1:], found[0])


def _options(head: Any, steps: int) -> HeadOptions:
    """Return the options under which a head's figures are those of its drafts.

    The objective of EAGLE-1 adds noise; that of HASS has none, on the same chain.
    """
    algorithm = head.config.algorithm
    if algorithm == "medusa":
        return HeadOptions(algorithm="medusa", layers=head.config.num_heads)
    return HeadOptions(algorithm="hass" if algorithm == "eagle" else algorithm, steps=steps)


def _batches(examples: Sequence[Example], source: ComputedFeatures) -> Iterator[Batch]:
    """Yield the texts with their features, in rows."""
    texts = Texts(examples, source, LENGTH, mx.float32, ROWS, seed=0)
    for number in range(texts.packed.total(1)):
        yield texts.reader.read([row for row in texts.packed.rows(number) if row])


def measure_lengths(engine: Any, loop: Loop) -> list[float]:
    """Return tokens per round for each of the loop's trees, over all prompts."""
    return [_length(engine, loop, tree) for tree in loop.trees]


def _length(engine: Any, loop: Loop, tree: TreeShape) -> float:
    """Return tokens per round for one tree."""
    accepted = rounds = 0
    for prompt in loop.prompts:
        stats = engine.generate(
            [{"role": "user", "content": prompt}],
            max_tokens=loop.n_tokens,
            ignore_eos=not loop.until_end,
            tree=tree,
        ).stats
        accepted, rounds = accepted + stats.accepted, rounds + stats.rounds
    return accepted / max(rounds, 1) + 1


def tree_name(tree: TreeShape) -> str:
    """Return a tree as users write it."""
    return f"{tree.depth}x{tree.width}x{tree.nodes}"


def cells(values: Iterable[float], digits: int = 3) -> list[str]:
    """Return numbers for a table."""
    return [f"{value:.{digits}f}" for value in values]


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown; all columns but the first hold numbers."""
    rule = ["---"] + ["---:"] * (len(titles) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, rule, *rows])
