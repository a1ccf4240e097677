"""What is decided when a model is loaded: described, and refused where it makes no sense."""

from typing import Any

import pytest

from mlx_eagle.errors import EagleError
from mlx_eagle.load_options import LoadOptions
from mlx_eagle.option import options_of


def test_every_load_option_is_described() -> None:
    # What the template is told is described where a turn says it.
    assert {*options_of(LoadOptions), "template_args"} == set(vars(LoadOptions()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "dtype is 'int4'; it must be one of float32, float16, bfloat16"),
        ({"kv_bits": 5}, "kv_bits is 5; it must be 4 or 8"),
        ({"kv_group_size": 48}, "kv_group_size is 48; it must be 32, 64 or 128"),
        ({"max_kv_size": 15}, "max_kv_size is 15; it must be a whole number from 16 on"),
        ({"head_window": -1}, "head_window is -1; it must be a whole number from 0 on"),
        ({"max_context": 2.5}, "max_context is 2.5; it must be a whole number from 2 on"),
        ({"template_args": [1]}, "template_args is [1]; give a dict of names and values"),
        ({"memory_limit": 0}, "memory_limit is 0; it must be a whole number from 1 on"),
    ],
)
def test_a_load_option_that_makes_no_sense_is_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EagleError) as raised:
        LoadOptions(**options)
    assert str(raised.value) == message
