"""The head before its first update: a new one for the texts, or one to go on with.

What can be wrong with it is found before the target answers anything, which may take hours.
"""

from dataclasses import asdict

import mlx.core as mx
from mlx.utils import tree_flatten

from mlx_eagle.errors import EagleError
from mlx_eagle.heads.load import Head, load_head
from mlx_eagle.hub.head_choice import prepare_head
from mlx_eagle.training.new_head import head_taps, make_head, unfreeze_weights
from mlx_eagle.training.options import HeadOptions
from mlx_eagle.training.read_target import ReadTarget
from mlx_eagle.training.recipe import Recipe, Watch
from mlx_eagle.training.texts.corpus import Corpus
from mlx_eagle.training.texts.draft_vocabulary import count_tokens, draft_vocabulary


def head_to_go_on_with(recipe: Recipe, read: ReadTarget, watch: Watch) -> Head | None:
    """Return the head that the recipe names, in float32, or None if a new one will be made.

    Raises:
        EagleError: if it is quantized, of a kind that is not trained, or of another target; or if
            the target has not the layers that a new one is to read.
    """
    if recipe.start is None:
        head_taps(recipe.head, read.sizes.num_hidden_layers)
        return None
    if recipe.head.taps:
        raise EagleError(
            f"{recipe.start} reads the boundaries that it was made for: leave out the taps"
        )
    folder = prepare_head(recipe.start, recipe.target, bits=None, notify=watch.remark)
    head = load_head(folder)
    _refuse_untrainable(head, recipe, read)
    head.set_dtype(mx.float32)
    return head


def _refuse_untrainable(head: Head, recipe: Recipe, read: ReadTarget) -> None:
    """Raise if a head cannot be trained further for this target."""
    if any(name.endswith(".scales") for name in dict(tree_flatten(head.parameters()))):
        raise EagleError(
            f"{recipe.start} is quantized, so its weights cannot be trained: give the head as it "
            "was before (of a training, its folder head-full), or convert it with --head-bits none"
        )
    config, sizes = head.config, read.sizes
    if config.algorithm == "p-eagle":
        raise EagleError(
            "P-EAGLE heads are not trained here; EAGLE-3, EAGLE-1 and Medusa heads are"
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
        watch: is told which ones.

    Raises:
        EagleError: if a new head cannot have these sizes.
    """
    mx.random.seed(recipe.loop.seed)
    if begun is not None:
        head, options = begun, _options_of(begun, recipe.head)
    else:
        n_wanted = recipe.data.draft_vocab if recipe.head.algorithm == "eagle3" else None
        counts = count_tokens(corpus.train, read.sizes.vocab_size)
        vocabulary = draft_vocabulary(counts, n_wanted, read.tokenizer)
        watch.remark(
            f"draft vocabulary: {len(vocabulary.ids)} of {read.sizes.vocab_size} tokens, "
            f"{vocabulary.coverage:.1%} of what is trained on"
        )
        options = recipe.head
        ids, length = mx.array(vocabulary.ids), recipe.data.length
        head = make_head(options, read.sizes, ids, read.teacher, length=length)
    unfreeze_weights(head)
    mx.eval(head.parameters())
    return head, options


def _options_of(head: Head, wanted: HeadOptions) -> HeadOptions:
    """Return the options of a head to go on with: of its own kind, trained as is wanted."""
    config, named = head.config, wanted.algorithm
    algorithm = named if config.algorithm == "eagle" and named == "hass" else config.algorithm
    return HeadOptions(**asdict(wanted) | {"algorithm": algorithm, "taps": tuple(config.taps)})
