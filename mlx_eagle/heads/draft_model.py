"""A small language model that drafts for a larger one with the same tokens.

It stands where a head stands, and needs nothing of the target: it reads the text itself, with a
cache of its own (speculative sampling; Leviathan et al., arXiv 2211.17192; Chen et al., arXiv
2302.01318). How it drafts is in `drafters/draft_model.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mlx_eagle.cache.model_cache import TreeCache
from mlx_eagle.cache.options import WHOLE, KVOptions
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.files.quoting import quote_value
from mlx_eagle.target.context_length import model_context_length
from mlx_eagle.target.load import LoadedTarget, load_target
from mlx_eagle.target.self_check import check_tree_verification, with_caches
from mlx_eagle.target.target import Target
from mlx_eagle.tree_shape import MAX_NODES

ALGORITHM = "draft-model"


class DraftModelConfig(NamedTuple):
    """What is known of a draft model where heads have a `HeadConfig`; it taps nothing."""

    algorithm: str = ALGORITHM
    taps: tuple[int, ...] = ()


class DraftModel(nn.Module):
    """An mlx-lm model that drafts: tokens in, logits of the token after each out.

    Args:
        network: as mlx-lm loads it; what trees need is put on it.
        max_context: tokens that it was made for; None where nobody says.
        remarks: what was done differently from mlx-lm when it was loaded, a line each.

    Attributes:
        max_context: beyond it nothing is drafted.
        model: the network, with caches of ours.
        chains_only: whether its rows cannot branch, because a layer is recurrent or trees were
            tried and came out wrong.

    Raises:
        UnsupportedTargetError: if its layers cannot forget what was drafted.
    """

    def __init__(
        self, network: nn.Module, max_context: int | None = None, remarks: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.max_context = max_context
        self.remarks = remarks
        self.config = DraftModelConfig()
        self.network = network
        self.model = Target(network)
        check_tree_verification(self.model)
        self.chains_only = self.model.chains_only
        self.vocab_size = self.model.vocab_size or self.model.n_logits  # ids that it can read
        self._tried: dict[KVOptions, Target] = {}  # the same model with other caches

    def remarks_in(self, context: int | None) -> tuple[str, ...]:
        """Return what is to be said of it, a line each, beside a target with so many tokens."""
        if self.max_context is None or self.max_context >= (context or self.max_context):
            return self.remarks
        limit = f"drafts for the first {self.max_context} tokens of a text, as it was made for"
        return (*self.remarks, limit)

    @property
    def max_depth(self) -> int:
        """Levels that it can draft: it steps as often as it is asked to."""
        return MAX_NODES

    @property
    def default_window(self) -> int:
        """Tokens that it attends to: all, for it is run as it was trained."""
        return 0

    def __call__(self, tokens: mx.array, cache: TreeCache) -> mx.array:
        """Return the logits [L, W] after tokens [L], whose rows the cache holds undecided."""
        # The target may know ids that are no tokens: they pad its vocabulary.
        known = mx.minimum(tokens, self.vocab_size - 1)
        logits: mx.array = self.network(known[None], cache=cache.layers)[0]
        return logits

    def make_cache(self, kv: KVOptions = WHOLE) -> TreeCache:
        """Return an empty cache for one conversation, which keeps what `kv` says.

        Raises:
            UnsupportedTargetError: if the model's code cannot read such a cache.
        """
        if kv not in self._tried:
            self._tried[kv] = with_caches(self.model, kv)
        cache = self._tried[kv].make_cache()
        assert isinstance(cache, TreeCache), "what verifies trees has caches of ours"
        return cache


def load_draft_model(
    folder: Path, tokenizer: Any, dtype: str | None = None, max_context: int | None = None
) -> DraftModel:
    """Load a draft model, with weights that are read when they are first needed.

    Args:
        folder: a model that mlx-lm can load.
        tokenizer: of the target, whose tokens must be the draft model's.
        dtype: of `LoadOptions`.
        max_context: tokens that a text may have, if the user says so; of them it drafts for those
            that it was made for.

    Raises:
        EagleError: if it cannot be loaded, has other tokens, or cannot forget what was drafted.
    """
    loaded, own = load_target(folder, dtype, max_context=max_context)
    check_same_tokens(own.get_vocab(), tokenizer.get_vocab())
    try:
        return DraftModel(loaded.network, _length(loaded), loaded.remarks)
    except EagleError as error:
        raise EagleError(f"{folder.name} cannot draft: {error}") from error


def _length(loaded: LoadedTarget) -> int | None:
    """Return up to how many tokens a model is of use; None where nothing says."""
    known = [loaded.max_context, model_context_length(loaded.config)]
    return min((length for length in known if length is not None), default=None)


def check_same_tokens(own: Mapping[str, int], target: Mapping[str, int]) -> None:
    """Refuse a draft model for which a token id means something else.

    Args:
        own: its token ids by their text.
        target: likewise the target's.

    Raises:
        CheckpointError: naming the lowest id that differs.
    """
    if differing := set(own.items()) ^ set(target.items()):
        lowest = min(id_ for _, id_ in differing)
        mine, theirs = (
            " and ".join(quote_value(text) for text, id_ in words.items() if id_ == lowest)
            for words in (own, target)
        )
        raise CheckpointError(
            f"the draft model has other tokens than the target: id {lowest} is "
            f"{mine or 'none'} there and {theirs or 'none'} here; give a model of the target's "
            "own family"
        )
