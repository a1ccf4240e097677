"""Prompts that are refused before anything runs, each by name."""

from typing import Any

import pytest

from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.session.prompt import encode


@pytest.mark.parametrize(
    "prompt",
    ["ab\ud83d", [{"role": "user", "content": "ab\ud83d"}], [{"role": "ab\udcff", "content": ""}]],
)
def test_b11_half_a_character_is_no_text(prompt: Any, demo: Engine) -> None:
    with pytest.raises(EagleError, match="not Unicode text: character 3 is half of a pair"):
        encode(demo.tokenizer, prompt)
    session = demo.session()
    with pytest.raises(EagleError, match="not Unicode text"):
        list(session.ask("\ud83d"))
    assert session.messages == []
