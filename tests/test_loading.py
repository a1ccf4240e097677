"""Loading: a pair that fits, and what is left of one that does not."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from mlx_eagle.cache.options import KVOptions
from mlx_eagle.drafters.make import DRAFTERS
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import ALGORITHMS
from mlx_eagle.heads.load import HEADS
from mlx_eagle.hub.head_choice import HeadChoice
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.loading import load
from mlx_eagle.pairing import pair_up
from mlx_eagle.speculation import Speculation
from mlx_eagle.target.target import Target
from mlx_eagle.tree_shape import TreeShape

FAMILIES = json.loads((Path(__file__).parent / "data" / "families.json").read_text())
LFM2: dict[str, Any] = FAMILIES["recurrent"]["lfm2"]


def classes(model: Any) -> list[type]:
    """The class of every module: a hook gives one instance a class of its own."""
    return [type(module) for _, module in model.named_modules()]


@pytest.mark.parametrize("architecture", ["llama", "lfm2"])
def test_released_hooks_leave_the_model_as_it_was(architecture: str, tiny_target: Any) -> None:
    sizes: dict[str, Any] = {} if architecture == "llama" else LFM2
    model = tiny_target(architecture, **sizes)
    before = classes(model)
    target = Target(model, taps=(0, 1, 3, 5))
    assert classes(model) != before
    target.release()
    assert classes(model) == before


def test_a_tap_that_is_not_there_leaves_nothing_on_the_model(tiny_target: Any) -> None:
    model = tiny_target("llama")
    before = classes(model)
    with pytest.raises(EagleError, match="boundary 9"):
        Target(model, taps=(0, 9))
    assert classes(model) == before


def test_c5_a_known_head_that_does_not_fit_leaves_no_taps_on_the_target(tiny_target: Any) -> None:
    choice = HeadChoice(DEMO / "head", "owner/head")
    pair = pair_up(tiny_target("llama"), choice)
    assert pair.head is None
    assert not pair.status.is_on
    assert pair.status.reason.startswith("owner/head: the head was made for another target")
    assert pair.target.taps == ()
    layers = pair.target.model.layers
    assert len({type(layer) for layer in layers}) == 1, "a tap gives its layer a class of its own"


def test_a_head_that_was_named_and_does_not_fit_is_refused(tiny_target: Any) -> None:
    model = tiny_target("llama")
    before = classes(model)
    with pytest.raises(EagleError, match="made for another target"):
        pair_up(model, HeadChoice(DEMO / "head", "mine", is_named=True))
    assert classes(model) == before


def test_an_option_that_does_not_exist_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="kv_bit"):
        load(tmp_path / "nowhere", kv_bit=4)


@pytest.mark.usefixtures("small_toy_pair")
def test_a_variant_with_another_cache_leaves_the_hooks_to_the_engine_that_put_them_on() -> None:
    engine = load(calibrate=False)
    engine.with_kv(KVOptions(bits=8)).target.release()
    assert engine.generate("def f(", max_tokens=4, tree=TreeShape.chain(2)).tokens


def test_every_algorithm_of_a_head_has_a_name_a_network_and_a_drafter() -> None:
    assert set(ALGORITHMS) == set(HEADS) == set(DRAFTERS) - {"draft-model"}


@pytest.mark.usefixtures("small_toy_pair")
def test_where_drafting_was_given_up_it_stays_so_until_costs_change(monkeypatch: Any) -> None:
    engine = load(calibrate=False)
    old, options = engine.session(), {"max_tokens": 3, "ignore_eos": True}
    old.prefix.outlook = Speculation.off("a test says so")
    old.prefix.judged_by = engine.planners
    assert list(old.ask("zip?", **options))[-1].stats.speculation == "off: a test says so"
    assert old.fork().prefix.outlook == old.prefix.outlook
    costs = engine.planners.calibration
    monkeypatch.setattr("mlx_eagle.engine.measure_costs", lambda *_: costs._replace(source="new"))
    assert engine.calibrate().source == "new"
    assert list(old.ask("zip?", **options))[-1].stats.planned.calibration == "new"
    old.prefix.outlook = Speculation.off("a test says so")
    old.clear()
    assert list(old.ask("zip?", **options))[-1].stats.planned.calibration == "new"


def test_progress_counts_loading_in_steps() -> None:
    seen: list[tuple[str, int, int]] = []
    load(head="none", progress=lambda *step: seen.append(step))
    assert [step for step in seen if step[0] == "load"] == [("load", n, 2) for n in (0, 1, 2)]


def test_the_parameters_of_a_loaded_pair_are_computed() -> None:
    engine = load(calibrate=False)
    assert engine.head is not None
    arrays = dict(tree_flatten(engine.head.parameters())).values()
    assert all(isinstance(array, mx.array) and array.size for array in arrays)
