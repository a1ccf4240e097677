"""Which model, and how it is loaded: from the command line and from /set."""

import inspect

import click
import pytest

from mlx_eagle.cli.options import SOURCE_PARSERS, ModelSource
from mlx_eagle.cli.settings import Settings, Tree
from mlx_eagle.loading import load

DEMO = ModelSource(None, None, None)


def test_the_library_takes_every_option_of_a_source_and_shares_its_defaults() -> None:
    known = inspect.signature(load).parameters
    for name, value in DEMO.load_options().items():
        assert known[name].default == value
    assert DEMO._replace(memory=1.5).load_options()["memory_limit"] == 1_500_000_000
    assert set(SOURCE_PARSERS) < set(ModelSource._fields)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("kv_bits", "8", 8),
        ("kv_bits", "none", None),
        ("head_window", "0", 0),
        ("head_window", "auto", None),
        ("max_context", "4096", 4096),
        ("memory", "1.5", 1.5),
        ("memory", "auto", None),
    ],
)
def test_what_is_fixed_at_loading_is_parsed_and_shown_as_it_was_typed(
    name: str, text: str, value: float | None
) -> None:
    before = DEMO._replace(kv_bits=4, head_window=7, max_context=9, memory=2.0)
    source = before.with_text(name, text)
    assert source == before._replace(**{name: value})
    assert source.text(name) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [("kv_bits", "5"), ("head_window", "-1"), ("max_context", "one"), ("memory", "0")],
)
def test_what_is_fixed_at_loading_is_refused_if_it_is_wrong(name: str, text: str) -> None:
    with pytest.raises(click.UsageError):
        DEMO.with_text(name, text)


def test_what_these_settings_do_not_need_is_not_loaded() -> None:
    plain, fixed = Settings(speculate=False), Settings(tree=Tree(2, 1, 2))
    real = ModelSource("owner/model", None, None)
    assert real.for_settings(Settings()) == real
    assert real.for_settings(plain) == real._replace(head="none", calibrate=False)
    assert real.for_settings(fixed) == real._replace(calibrate=False)
    assert DEMO.for_settings(plain).head is None
