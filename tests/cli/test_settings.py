"""Settings: completed, parsed, and understood by the library."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from mlx_eagle.cli.settings import PARSERS, Schema, Settings, Tree, complete_tree
from mlx_eagle.session.options import GenerationOptions


@pytest.mark.parametrize(
    ("sizes", "tree"),
    [
        ((None, None, None), None),
        ((4, None, None), (4, 1, 4)),
        ((4, 2, None), (4, 2, 8)),
        ((4, None, 8), (4, 2, 8)),
        ((4, None, 4), (4, 1, 4)),
        ((3, None, 7), (3, 3, 7)),
        ((1, 5, None), (1, 5, 5)),
        ((6, 10, 59), (6, 10, 59)),
    ],
)
def test_a_tree_is_completed_from_the_sizes_that_are_given(
    sizes: tuple[int | None, ...], tree: tuple[int, int, int] | None
) -> None:
    assert complete_tree(*sizes) == tree
    Settings(tree=complete_tree(*sizes)).engine_options()


def test_the_library_takes_every_setting_and_shares_its_defaults() -> None:
    assert vars(GenerationOptions(**Settings().engine_options())) == vars(GenerationOptions())
    assert set(PARSERS) < set(vars(Settings()))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.7", 0.7),
        ("speculate", "off", False),
        ("seed", "12", 12),
        ("tree", "4 1 4", Tree(4, 1, 4)),
        ("tree", "auto", None),
        ("repetition_penalty", "1.1", 1.1),
        ("presence_penalty", "-0.5", -0.5),
        ("frequency_penalty", "off", None),
        ("regex", "a  b|none", "a  b|none"),
        ("regex", "none", None),
        ("overflow", "truncate", "truncate"),
    ],
)
def test_a_typed_setting_is_parsed_and_shown_as_it_was_typed(
    name: str, text: str, value: Any
) -> None:
    before = Settings(tree=Tree(2, 1, 2), frequency_penalty=1.0, regex="x")
    settings = before.with_text(name, text)
    assert vars(settings)[name] == value
    assert settings.text(name) == ("none" if text == "off" and value is None else text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "hot"),
        ("temperature", "-1"),
        ("temperature", "1 2"),
        ("temperature", "none"),
        ("speculate", "maybe"),
        ("max_tokens", "0"),
        ("tree", "4 1 9"),
        ("tree", "4 1 4 1"),
        ("tree", "0"),
        ("repetition_penalty", "0"),
        ("presence_penalty", "3"),
        ("overflow", "drop"),
        ("json_schema", "/nowhere/schema.json"),
    ],
)
def test_a_typed_setting_that_is_wrong_is_refused(name: str, text: str) -> None:
    with pytest.raises(click.UsageError):
        Settings().with_text(name, text)


def test_a_schema_is_read_from_its_file_and_replaces_a_pattern(tmp_path: Path) -> None:
    file = tmp_path / "a schema.json"
    file.write_text('{"type": "object"}')
    settings = Settings(regex="a+").with_text("json_schema", str(file))
    assert settings.json_schema == Schema(str(file), '{"type": "object"}')
    assert settings.regex is None
    assert settings.text("json_schema") == str(file)
    assert json.loads(settings.engine_options()["json_schema"]) == {"type": "object"}
    assert settings.with_text("regex", "b+").json_schema is None
    assert settings.with_text("json_schema", "none").json_schema is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON: Expecting"),
        (b"[" * 100_000, "is not JSON: "),
        (b"[1]", "is not a JSON schema: it holds no object"),
        (b'{"title": "caf\xe9"}', "is not UTF-8 text"),
    ],
)
def test_a_file_that_holds_no_schema_is_refused(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "schema.json"
    file.write_bytes(content)
    with pytest.raises(click.UsageError, match=reason):
        Settings().with_text("json_schema", str(file))
    with pytest.raises(click.UsageError, match="is a directory"):
        Settings().with_text("json_schema", str(tmp_path))


def test_the_coldest_temperature_is_the_librarys() -> None:
    for text in ("1e-40", "9e-7"):
        with pytest.raises(click.UsageError, match="neither 0 nor 1e-06 or more"):
            Settings().with_text("temperature", text)
    for text in ("0", "1e-6", "0.7"):
        options = Settings().with_text("temperature", text).engine_options()
        assert GenerationOptions(**options).temperature == float(text)
