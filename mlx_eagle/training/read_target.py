"""The target as training reads it: its layers, its tokenizer, and what a head has to fit."""

from typing import Any, NamedTuple

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_eagle.convert.target_facts import TargetFacts, read_target_facts
from mlx_eagle.files.json_files import language_config
from mlx_eagle.target.context_length import model_context_length
from mlx_eagle.target.load import load_target, precision
from mlx_eagle.target.target import Target
from mlx_eagle.training.new_head import TargetSizes
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.recipe import Recipe, adapter_contents, model_contents


class ReadTarget(NamedTuple):
    """A target that was read.

    Attributes:
        target: its network, which can be tapped.
        tokenizer: mlx-lm's wrapper.
        facts: what a head's folder says of it.
        sizes: what a new head takes over from it.
        teacher: its layers that know tokens.
        identity: what tells it from others: its weights, those of an adapter, its precision.
        max_context: tokens that a text may have; None for any number.
    """

    target: Target
    tokenizer: Any
    facts: TargetFacts
    sizes: TargetSizes
    teacher: Teacher
    identity: str
    max_context: int | None

    @property
    def n_bytes(self) -> int:
        """Bytes of its weights."""
        return sum(a.nbytes for a in dict(tree_flatten(self.target.model.parameters())).values())


def read_target(recipe: Recipe) -> ReadTarget:
    """Load the target and find out what training needs of it.

    Raises:
        EagleError: if it cannot be loaded, or no head can be trained for it.
    """
    facts = read_target_facts(recipe.target)
    loaded, tokenizer = load_target(recipe.target, adapter=recipe.adapter)
    target = Target(loaded.network)
    embedding = target.embedding(mx.array([0]))
    sizes = TargetSizes(
        embedding.shape[-1],
        facts.vocab_size,
        len(loaded.network.layers),
        language_config(loaded.config),
    )
    context = loaded.max_context or model_context_length(loaded.config)
    identity = f"{facts.name} {model_contents(recipe.target)[:16]} {precision(loaded.network)}"
    if recipe.adapter is not None:
        identity += f" {recipe.adapter.name} {adapter_contents(recipe.adapter)[:16]}"
    return ReadTarget(target, tokenizer, facts, sizes, Teacher.of(target), identity, context)
