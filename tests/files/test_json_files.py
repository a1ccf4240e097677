"""JSON from files: bounded, unambiguous, and numbers of it that can be what they are for."""

from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.json_files import language_config, read_count, read_json, read_number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not readable JSON"),
        (b"\xff\xfe{", "not readable JSON"),
        (b'{"x":' * 200_000, "not readable JSON"),
        (b'{"x":' * 25 + b"1" + b"}" * 25, "nested more than 24 deep"),
        (b'{"x":1,"x":1}', "key 'x' comes twice"),
        (b'{"x":{"\xc3\xa9":1,"\\u00e9":1}}', "key '\xe9' comes twice"),
        (b'{"x":"\\udc00"}', "surrogates"),
        (b'{"x":[' + b"[]," * 600_000, "more than 500000 objects and lists"),
        (b'{"x":' + b"9" * 41 + b"}", "integer of 41 digits"),
        (b" " * ((8 << 20) + 1), "larger than"),
        (b'{"x":' + b"9" * 5000 + b"}", "not readable JSON"),
        (None, "does not exist"),
    ],
)
def test_json_that_is_no_object_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{tmp_path.name}/config.json.*{message}"):
        read_json(file)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", [8], 1 << 31, -0.0, 1e400, 10**40])
def test_sizes_in_a_configuration_are_positive_integers(value: Any) -> None:
    assert read_count({"n": 8}, "n") == 8
    assert read_count({"n": None}, "n", 3) == 3
    with pytest.raises(CheckpointError, match=r"n is .*, not a positive integer"):
        read_count({"n": value}, "n", 3)


def test_sizes_in_a_configuration_may_have_a_bound_of_their_own() -> None:
    assert read_count({"n": 64}, "n", most=64) == 64
    with pytest.raises(CheckpointError, match="n is 65, not a positive integer up to 64"):
        read_count({"n": 65}, "n", most=64)


@pytest.mark.parametrize(
    "value",
    [0, -1.0, -0.0, float("nan"), float("inf"), 1e15, 10**40, 5e-324, True, "1e-5", [1.0]],
)
def test_numbers_in_a_configuration_are_positive_and_finite(value: Any) -> None:
    assert read_number({"eps": 1e-5}, "eps", 1.0) == 1e-5
    assert read_number({}, "eps", 1.0) == 1.0
    with pytest.raises(CheckpointError, match=r"eps is .*, not a positive number"):
        read_number({"eps": value}, "eps", 1.0)


def test_missing_size_without_a_default_is_refused() -> None:
    with pytest.raises(CheckpointError, match="n is missing"):
        read_count({}, "n")


def test_language_part_of_a_configuration_wins() -> None:
    nested = {"model_type": "gemma3", "vocab_size": 1, "text_config": {"vocab_size": 2}}
    assert language_config(nested)["vocab_size"] == 2
    assert language_config({"vocab_size": 1}) == {"vocab_size": 1}
