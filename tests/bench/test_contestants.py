"""Who takes part: what cannot is refused by name, before anything is measured."""

from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.bench.contestants import make_contestant
from mlx_eagle.bench.specs import parse_spec
from mlx_eagle.errors import EagleError
from turning_pair import swap_words


def test_mlx_lms_draft_model_must_have_the_targets_tokens(
    turning: Any, turning_target: Path, tmp_path: Path
) -> None:
    """Two words have changed places: there are as many of them, and all drafts are nonsense."""
    folder = swap_words(turning_target, tmp_path / "other")

    def make(source: Path) -> Any:
        spec = parse_spec(f"draft-model:{source}:2")
        return make_contestant(spec, turning, lambda engine, _: engine, Path)

    with pytest.raises(EagleError, match="other tokens than the target: id 300 is"):
        make(folder)
    assert make(turning_target).name
