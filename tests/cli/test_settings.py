"""Settings as they are typed and shown: parsed, refused, and understood by the library."""

import json
from pathlib import Path
from typing import Any

import click
import pytest

from mlx_eagle.cli.option_types import Schema
from mlx_eagle.cli.options import ModelSource, as_keywords
from mlx_eagle.cli.settings import fields_by_name, text_of, with_text
from mlx_eagle.load_options import LoadOptions
from mlx_eagle.session.options import GenerationOptions
from mlx_eagle.tree_shape import TreeShape

DEMO = ModelSource(None, None)
DEFAULTS = GenerationOptions()


def test_the_library_takes_every_setting_and_shares_its_defaults() -> None:
    assert GenerationOptions(**as_keywords(DEFAULTS)) == DEFAULTS
    for name, field in fields_by_name(GenerationOptions).items():
        assert name == field  # only what is loaded has names of its own
        assert text_of(DEFAULTS, field)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0.7", 0.7),
        ("speculate", "off", False),
        ("seed", "12", 12),
        ("tree", "4x1x4", TreeShape(4, 1, 4)),
        ("tree", "auto", None),
        ("repetition_penalty", "1.1", 1.1),
        ("presence_penalty", "-0.5", -0.5),
        ("frequency_penalty", "off", None),
        ("regex", "a  b|none", "a  b|none"),
        ("regex", "auto", "auto"),
        ("regex", "none", None),
        ("overflow", "truncate", "truncate"),
    ],
)
def test_a_typed_setting_is_parsed_and_shown_as_it_was_typed(
    name: str, text: str, value: Any
) -> None:
    before = GenerationOptions(tree=TreeShape(2, 1, 2), frequency_penalty=1.0, regex="x")
    settings = with_text(before, name, text)
    assert vars(settings)[name] == value
    assert text_of(settings, name) == ("none" if text == "off" and value is None else text)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("temperature", "hot"),
        ("temperature", "-1"),
        ("temperature", "1 2"),
        ("temperature", "none"),
        ("speculate", "maybe"),
        ("max_tokens", "0"),
        ("tree", "4x1x9"),
        ("tree", "4x1x4x1"),
        ("tree", "0"),
        ("tree", "off"),
        ("tree", "none"),
        ("repetition_penalty", "0"),
        ("presence_penalty", "3"),
        ("overflow", "drop"),
        ("json_schema", "/nowhere/schema.json"),
    ],
)
def test_a_typed_setting_that_is_wrong_is_refused(name: str, text: str) -> None:
    with pytest.raises(click.UsageError):
        with_text(DEFAULTS, name, text)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("kv_bits", "8", 8),
        ("kv_bits", "none", None),
        ("head_window", "0", 0),
        ("head_window", "auto", None),
        ("max_context", "4096", 4096),
        ("memory", "1.5", 1_500_000_000),
        ("memory", "auto", None),
    ],
)
def test_what_is_fixed_at_loading_is_parsed_and_shown_as_it_was_typed(
    name: str, text: str, value: float | None
) -> None:
    field = fields_by_name(LoadOptions)[name]
    before = LoadOptions(kv_bits=4, head_window=7, max_context=9, memory_limit=2 * 10**9)
    loading = with_text(before, field, text)
    assert vars(loading) == vars(before) | {field: value}
    assert text_of(loading, field) == text


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("kv_bits", "5"),
        ("head_window", "-1"),
        ("max_context", "one"),
        ("memory_limit", "0"),
        ("memory_limit", "1e-12"),
        ("head_window", "off"),
        ("head_window", "none"),
        ("max_context", "none"),
    ],
)
def test_what_is_fixed_at_loading_is_refused_if_it_is_wrong(field: str, text: str) -> None:
    with pytest.raises(click.UsageError):
        with_text(LoadOptions(), field, text)


def test_what_these_settings_do_not_need_is_not_loaded() -> None:
    plain = GenerationOptions(speculate=False)
    fixed = GenerationOptions(tree=TreeShape(2, 1, 2))
    real = ModelSource("owner/model", None)
    assert real.for_settings(DEFAULTS) == real
    unmeasured = real.with_loading(calibrate=False)
    assert real.for_settings(plain) == unmeasured._replace(head="none")
    assert real.for_settings(fixed) == unmeasured
    assert DEMO.for_settings(plain).head is None


def test_a_schema_is_read_from_its_file_and_replaces_a_pattern(tmp_path: Path) -> None:
    file = tmp_path / "a schema.json"
    file.write_text('{"type": "object"}')
    settings = with_text(GenerationOptions(regex="a+"), "json_schema", str(file))
    assert settings.json_schema == Schema(str(file), '{"type": "object"}')
    assert settings.regex is None
    assert text_of(settings, "json_schema") == str(file)
    assert json.loads(as_keywords(settings)["json_schema"]) == {"type": "object"}
    assert with_text(settings, "regex", "b+").json_schema is None
    assert with_text(settings, "json_schema", "none").json_schema is None


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
        with_text(DEFAULTS, "json_schema", str(file))
    with pytest.raises(click.UsageError, match="is a directory"):
        with_text(DEFAULTS, "json_schema", str(tmp_path))


def test_the_coldest_temperature_is_the_librarys() -> None:
    for text in ("1e-40", "9e-7"):
        with pytest.raises(click.UsageError, match="neither 0 nor 1e-06 or more"):
            with_text(DEFAULTS, "temperature", text)
    for text in ("0", "1e-6", "0.7"):
        options = as_keywords(with_text(DEFAULTS, "temperature", text))
        assert GenerationOptions(**options).temperature == float(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("enable_thinking=false", {"enable_thinking": False}),
        ("a=1, b=two", {"a": 1, "b": "two"}),
        ('{"a": [1]}', {"a": [1]}),
    ],
)
def test_b4_template_arguments_are_names_and_values(text: str, value: dict[str, Any]) -> None:
    options = with_text(GenerationOptions(), "template_args", text)
    assert options.template_args == value
    assert with_text(options, "template_args", text_of(options, "template_args")) == options
    assert with_text(options, "template_args", "none").template_args is None
    for wrong in ("enable_thinking", "=1", "{1"):
        with pytest.raises(click.UsageError):
            with_text(options, "template_args", wrong)
