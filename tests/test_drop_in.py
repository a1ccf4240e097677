"""The old name of the mlx-lm API, for one release."""

import importlib
import sys

import pytest

from mlx_eagle import mlx_lm_api


def test_the_old_name_says_the_new_one_and_holds_the_same_functions() -> None:
    sys.modules.pop("mlx_eagle.drop_in", None)
    with pytest.warns(FutureWarning, match=r"import mlx_eagle\.mlx_lm_api"):
        old = importlib.import_module("mlx_eagle.drop_in")
    for name in old.__all__:
        assert getattr(old, name) is getattr(mlx_lm_api, name)
