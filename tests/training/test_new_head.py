"""A head before its first update: its sizes, its first weights, and what cannot be made."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.heads.medusa import MedusaHead
from mlx_eagle.training.new_head import TargetSizes, head_taps, make_head, unfreeze_weights
from mlx_eagle.training.objectives.teacher import Teacher
from mlx_eagle.training.options import HeadOptions
from training_cases import tiny_target

CONFIG = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 80,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 5e5},
}
SIZES = TargetSizes(32, 64, 12, CONFIG)
DRAFT_IDS = mx.array([1, 5, 6, 30, 63], dtype=mx.int32)


def make(**options: object) -> tuple[EagleHead | MedusaHead, Teacher]:
    target = tiny_target()
    teacher = Teacher(target.embedding, target.unembed)
    mx.random.seed(0)
    ids = DRAFT_IDS if options.get("algorithm", "eagle3") == "eagle3" else mx.arange(64)
    return make_head(HeadOptions(**options), SIZES, ids, teacher), teacher


def test_a_head_takes_its_sizes_from_the_target() -> None:
    head, _ = make()
    config = head.config
    assert isinstance(head, EagleHead)
    assert config.taps == (2, 6, 9)  # the boundaries of the paper's code: 2, n // 2, n - 3
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 8)
    assert (config.rope_theta, config.rms_norm_eps, config.intermediate_size) == (5e5, 1e-6, 80)
    assert head.draft_to_target.tolist() == DRAFT_IDS.tolist()


@pytest.mark.parametrize(
    ("stated", "length", "expected"),
    [({}, 512, 2048), ({}, 4096, 4096), ({"max_position_embeddings": 32768}, 4096, 32768)],
)
def test_it_has_as_many_positions_as_its_target_and_its_texts(
    stated: dict[str, int], length: int, expected: int
) -> None:
    """Engines read so many from what is exported; a window takes none of them away."""
    target = tiny_target()
    sizes, teacher = SIZES._replace(config=CONFIG | stated), Teacher(*target)
    for window in (None, 64):
        head = make_head(HeadOptions(window=window), sizes, DRAFT_IDS, teacher, length=length)
        assert isinstance(head, EagleHead)
        assert head.config.max_position_embeddings == expected


def test_its_output_layer_begins_as_the_target_s_rows() -> None:
    head, teacher = make()
    assert isinstance(head, EagleHead)
    assert mx.array_equal(head.lm_head.weight, teacher.output.weight[DRAFT_IDS])


def test_medusa_heads_begin_as_the_target_s_own_next_token() -> None:
    head, teacher = make(algorithm="medusa", layers=3)
    assert isinstance(head, MedusaHead)
    final = mx.random.normal((1, 1, 32))
    own = mx.broadcast_to(teacher.output(final)[0], (3, 64))
    np.testing.assert_allclose(head(final), own, rtol=1e-5, atol=1e-5)


def test_only_weights_are_trained() -> None:
    for options in ({}, {"norms": "eagle3.1"}, {"algorithm": "eagle"}, {"algorithm": "medusa"}):
        head, _ = make(**options)
        unfreeze_weights(head)
        trained = {name for name, _ in tree_flatten(head.trainable_parameters())}
        everything = {name for name, _ in tree_flatten(head.parameters())}
        assert everything - trained == {"draft_to_target"}


def test_the_norms_of_eagle_3_1_are_one_for_each_tap_and_the_output_s() -> None:
    config = make(norms="eagle3.1", taps=(1, 4))[0].config
    assert (config.fc_norm, config.norm_output, config.taps) == (True, True, (1, 4))
    assert make()[0].config.fc_norm is False


@pytest.mark.parametrize("taps", [(4, 2), (2, 2), (2, 14)])
def test_taps_that_the_target_has_not_are_refused(taps: tuple[int, ...]) -> None:
    with pytest.raises(EagleError, match="boundaries from 0 to 13, ascending"):
        head_taps(HeadOptions(taps=taps), 12)


def test_taps_are_refused_where_the_final_state_is_read() -> None:
    assert head_taps(HeadOptions(algorithm="eagle"), 12) == (13,)
    with pytest.raises(EagleError, match="medusa heads read the final state: leave out the taps"):
        head_taps(HeadOptions(algorithm="medusa", taps=(2,)), 12)


def sizes_for(config: dict[str, object], hidden: int = 32) -> tuple[int, int, int, int]:
    """Heads, heads of keys, width of one and of the MLP, in a head for a target."""
    target = tiny_target(width=hidden)
    sizes = TargetSizes(hidden, 64, 12, config)
    made = make_head(HeadOptions(), sizes, DRAFT_IDS, Teacher(*target)).config
    assert isinstance(made, HeadConfig)
    widths = made.num_attention_heads, made.num_key_value_heads, made.head_dim
    return *widths, made.intermediate_size


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ({"intermediate_size": [80] * 12}, (4, 2, 8, 80)),  # Gemma 3n has a list
        ({"intermediate_size": [80, 96]}, (4, 2, 8, 128)),
        ({"num_key_value_heads": [2, 2, 4]}, (4, 4, 8, 80)),
        ({"num_key_value_heads": None}, (4, 4, 8, 80)),
        ({"num_attention_heads": [4, 8], "num_key_value_heads": [2, 4]}, (1, 1, 32, 80)),
        ({"num_attention_heads": 5, "head_dim": None}, (1, 1, 32, 80)),
        ({"kv_lora_rank": 16, "num_attention_heads": 3, "head_dim": 5}, (1, 1, 32, 80)),
        ({"kv_lora_rank": None}, (4, 2, 8, 80)),
        ({"rms_norm_eps": [1e-6], "rope_parameters": None, "rope_theta": [1e4]}, (4, 2, 8, 80)),
    ],
)
def test_sizes_that_are_not_one_number_follow_from_the_width(
    stated: dict[str, object], expected: tuple[int, int, int, int]
) -> None:
    assert sizes_for(CONFIG | stated) == expected


@pytest.mark.parametrize(
    ("hidden", "expected"), [(7168, (56, 8, 128)), (2304, (18, 6, 128)), (576, (9, 3, 64))]
)
def test_latent_attention_gives_a_head_as_wide_as_engines_expect(
    hidden: int, expected: tuple[int, int, int]
) -> None:
    """DeepSeek has 128 heads of each kind, with widths that only its own attention knows."""
    latent = {"num_attention_heads": 128, "num_key_value_heads": 128, "kv_lora_rank": 512}
    assert sizes_for(latent, hidden)[:3] == expected


def test_sizes_that_no_head_can_have_are_refused() -> None:
    target = tiny_target()
    odd = SIZES._replace(config=CONFIG | {"num_key_value_heads": 3})
    with pytest.raises(EagleError, match="a head cannot be made for this target: it needs query"):
        make_head(HeadOptions(), odd, DRAFT_IDS, Teacher(target.embedding, target.unembed))
