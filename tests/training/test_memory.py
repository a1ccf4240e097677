"""The estimate of memory: exact where it can be, and refusals that say what helps."""

import re
from dataclasses import replace
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.training.memory import MemoryEstimate, check_memory, estimate_memory
from mlx_eagle.training.options import DataOptions, HeadOptions, LoopOptions
from mlx_eagle.training.run.checkpoint import optimizer_arrays, trained_arrays
from mlx_eagle.training.run.optimizer import make_optimizer
from tiny_models import tiny_head_config

DATA, HEAD, LOOP = DataOptions(length=64), HeadOptions(), LoopOptions()


def made_head(config: HeadConfig) -> EagleHead:
    head = EagleHead(config)
    head.unfreeze()
    head.freeze(keys=["draft_to_target"], recurse=False)
    return head


def estimate(config: HeadConfig, **loop: Any) -> MemoryEstimate:
    shapes = {name: array.shape for name, array in trained_arrays(made_head(config)).items()}
    return estimate_memory(config, shapes, DATA, HEAD, replace(LOOP, **loop))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_weights_gradients_and_the_optimizers_state_are_counted(optimizer: str) -> None:
    head = made_head(tiny_head_config())
    found = estimate(tiny_head_config(), optimizer=optimizer)
    weights = trained_arrays(head)
    assert found.weights == found.gradients == sum(w.nbytes for w in weights.values())
    arrays = optimizer_arrays(make_optimizer(LoopOptions(optimizer=optimizer), head))
    kept = sum(array.nbytes for array in arrays.values())
    work = 2 * max(w.nbytes for w in weights.values()) if optimizer == "muon" else 0
    assert found.optimizer == pytest.approx(kept + work, rel=0.02)


def test_a_head_that_is_not_evaluated_tells_its_shapes_for_nothing() -> None:
    wide = replace(tiny_head_config(), hidden_size=4096, intermediate_size=14336)
    before = mx.get_active_memory()
    parts = dict(tree_flatten(EagleHead(wide).parameters()))
    assert sum(part.size for part in parts.values()) > 1e8
    assert mx.get_active_memory() - before < 1e6


def test_more_rows_take_more_and_recomputing_takes_less() -> None:
    config = tiny_head_config()
    base = estimate(config)
    assert estimate(config, batch=8).activations > 1.8 * base.activations
    assert estimate(config, batch=8).features == 2 * base.features
    assert estimate(config, recompute=True).activations < base.activations
    assert estimate(config, accumulate=2).gradients == 2 * base.gradients
    assert base.total == sum(base)


def test_the_algorithms_own_number_of_steps_counts_where_none_is_given() -> None:
    config = tiny_head_config()
    shapes = {name: array.shape for name, array in trained_arrays(made_head(config)).items()}

    def activations(**options: Any) -> int:
        return estimate_memory(config, shapes, DATA, HeadOptions(**options), LOOP).activations

    assert activations() == activations(steps=7) > activations(steps=3)
    assert activations(algorithm="hass") == activations(algorithm="hass", steps=3)
    assert activations(algorithm="eagle") == activations(algorithm="eagle", steps=1)


def test_older_kinds_of_heads_hold_a_block_of_logits_and_recompute_nothing() -> None:
    config = replace(tiny_head_config(), own_lm_head=False)
    shapes = {name: array.shape for name, array in trained_arrays(made_head(config)).items()}
    hass = HeadOptions(algorithm="hass")
    plain, again = (
        estimate_memory(config, shapes, DATA, hass, replace(LOOP, recompute=recompute))
        for recompute in (False, True)
    )
    assert plain == again
    longer = replace(DATA, length=8192)
    more = estimate_memory(config, shapes, longer, replace(hass, steps=6), LOOP)
    assert more.logits == 4 * plain.logits, "a block has 256 rows, and 64 are fewer"


def test_a_training_that_is_too_large_is_refused_with_advice() -> None:
    found = MemoryEstimate(1, 1, 1, int(5e9), 1, 1)
    check_memory(found, int(6.7e9), HeadOptions(), LOOP)
    with pytest.raises(EagleError) as caught:
        check_memory(found, int(6e9), HeadOptions(), LOOP)
    assert re.fullmatch(
        r"training may take 6.7 GB besides the target \(an estimate with a third added; most of "
        r"it: activations, 5.0 GB\), and 6.0 GB are there: use --recompute, --batch 2 with "
        r"--accumulate, a smaller --length or a smaller --draft-vocab, or allow more with --memory",
        str(caught.value),
    )


def test_older_kinds_of_heads_are_not_advised_what_does_not_help_them() -> None:
    nothing = MemoryEstimate(1, 1, 1, 1, 1, 1)
    with pytest.raises(EagleError) as refusal:
        check_memory(nothing, 0, HeadOptions(algorithm="hass"), LOOP)
    assert "--recompute" not in str(refusal.value)
    assert "--draft-vocab" not in str(refusal.value)


def test_advice_that_is_followed_already_is_not_given_again() -> None:
    loop = LoopOptions(recompute=True, batch=1)
    with pytest.raises(EagleError, match="use a smaller --length or a smaller --draft-vocab"):
        check_memory(MemoryEstimate(1, 1, 1, 1, 1, 1), 0, HeadOptions(), loop)
