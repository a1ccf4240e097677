"""The head before its first update: a new one for the texts, or one to go on with.

What can be wrong with it is found before the target answers anything, which may take hours.
"""

from dataclasses import asdict

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from mlx_eagle.errors import EagleError
from mlx_eagle.files.quoting import listed
from mlx_eagle.heads.config import ALGORITHMS, PARALLEL
from mlx_eagle.heads.load import Head, load_head
from mlx_eagle.hub.head_choice import prepare_head
from mlx_eagle.training.new_head import head_taps, make_head, unfreeze_weights
from mlx_eagle.training.options import DataOptions, HeadOptions
from mlx_eagle.training.read_target import ReadTarget
from mlx_eagle.training.recipe import Recipe, Watch
from mlx_eagle.training.texts.corpus import Corpus
from mlx_eagle.training.texts.draft_vocabulary import (
    DraftVocabulary,
    count_tokens,
    coverage,
    draft_vocabulary,
)


def head_to_go_on_with(recipe: Recipe, read: ReadTarget, watch: Watch) -> Head | None:
    """Return the head that the recipe names, in float32, or None if a new one will be made.

    Raises:
        EagleError: if it is quantized, of a kind that is not trained, or of another target; or if
            the target has not the layers that a new one is to read.
    """
    if recipe.start is None:
        recipe.refuse_idle_options(recipe.head.algorithm)
        head_taps(recipe.head, read.sizes.num_hidden_layers)
        return None
    if wrong := _options_of_new_heads(recipe):
        raise EagleError(f"{recipe.start} keeps what it was made with: leave out {listed(wrong)}")
    folder = prepare_head(recipe.start, recipe.target, bits=None, notify=watch.remark)
    head = load_head(folder)
    _refuse_untrainable(head, recipe, read)
    recipe.refuse_idle_options(_options_of(head, recipe.head).algorithm)
    head.set_dtype(mx.float32)
    return head


def _options_of_new_heads(recipe: Recipe) -> list[str]:
    """Return the options that are given and would change nothing in a head to go on with."""
    data, head = recipe.data, recipe.head
    names = ("layers", "taps", "intermediate", "norms", "window")
    given = [name for name in names if getattr(head, name) != getattr(HeadOptions(), name)]
    given += ["draft_vocab"] if data.draft_vocab != DataOptions().draft_vocab else []
    return [f"--{name.replace('_', '-')}" for name in given]


def _refuse_untrainable(head: Head, recipe: Recipe, read: ReadTarget) -> None:
    """Raise if a head cannot be trained further for this target."""
    if any(name.endswith(".scales") for name in dict(tree_flatten(head.parameters()))):
        raise EagleError(
            f"{recipe.start} is quantized, so its weights cannot be trained: give the head as it "
            "was before (of a training, its folder head-full), or convert it with --head-bits none"
        )
    config, sizes = head.config, read.sizes
    if config.algorithm in (*PARALLEL, "mtp"):
        raise EagleError(
            f"{recipe.start} is a {ALGORITHMS[config.algorithm]}, which is not trained here; "
            "EAGLE-3, EAGLE-1 and Medusa heads are"
        )
    named = recipe.head.algorithm
    if named not in (HeadOptions().algorithm, _algorithm(config.algorithm, named)):
        raise EagleError(
            f"{recipe.start} is of the kind {ALGORITHMS[config.algorithm]}, which --algorithm "
            f"{named} does not train: leave it out"
        )
    ours = (sizes.hidden_size, sizes.vocab_size)
    if (config.target_hidden_size, config.target_vocab_size) != ours:
        raise EagleError(
            f"{recipe.start} is a head for a target of width {config.target_hidden_size} with "
            f"{config.target_vocab_size} tokens; this one has width {ours[0]} and {ours[1]} tokens"
        )
    if max(config.taps) > (last := sizes.num_hidden_layers + 1):
        raise EagleError(
            f"{recipe.start} reads boundary {max(config.taps)} of its target; the last one of "
            f"this target is {last}"
        )


def first_head(
    recipe: Recipe, read: ReadTarget, begun: Head | None, corpus: Corpus, watch: Watch
) -> tuple[Head, HeadOptions]:
    """Return the head before its first update, and the options that it is trained with.

    Args:
        recipe: what is asked for.
        read: the target.
        begun: as `head_to_go_on_with` returned it.
        corpus: a new head proposes the tokens that are frequent in it.
        watch: is told how many they are, or those of the head to go on with, and their share.

    Raises:
        EagleError: if a new head cannot have these sizes.
    """
    mx.random.seed(recipe.loop.seed)
    counts = count_tokens(corpus.train, read.sizes.vocab_size)
    if begun is not None:
        head, options = begun, _options_of(begun, recipe.head)
        ids = np.array(begun.draft_to_target)
        vocabulary = DraftVocabulary(ids, coverage(counts, ids))
    else:
        n_wanted = recipe.data.draft_vocab if recipe.head.algorithm == "eagle3" else None
        vocabulary = draft_vocabulary(counts, n_wanted, read.tokenizer)
        options = recipe.head
        draft_ids, length = mx.array(vocabulary.ids), recipe.data.length
        head = make_head(options, read.sizes, draft_ids, read.teacher, length=length)
    watch.remark(
        f"draft vocabulary: {len(vocabulary.ids)} of {read.sizes.vocab_size} tokens, "
        f"{vocabulary.coverage:.1%} of what is trained on"
    )
    unfreeze_weights(head)
    mx.eval(head.parameters())
    return head, options


def _options_of(head: Head, wanted: HeadOptions) -> HeadOptions:
    """Return the options of a head to go on with: of its own kind, trained as is wanted."""
    config = head.config
    algorithm = _algorithm(config.algorithm, wanted.algorithm)
    return HeadOptions(**asdict(wanted) | {"algorithm": algorithm, "taps": tuple(config.taps)})


def _algorithm(kind: str, named: str) -> str:
    """Return how a head of some kind is trained: as HASS if that is named for an EAGLE-1 head."""
    return named if kind == "eagle" and named == "hass" else kind
