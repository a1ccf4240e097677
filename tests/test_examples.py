"""The example apps run as they are, with the toy pair."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first app measures of this machine, for the others."""
    return tmp_path_factory.mktemp("records")


@pytest.fixture(autouse=True)
def own_records(records: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the apps measure of this machine is not for the tests after them."""
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(records))


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_smallest_app_streams_an_answer() -> None:
    out = run("stream.py", "What is the signature of zip?")
    assert "zip" in out
    assert "target forwards" in out


def test_texts_become_json_of_the_schema_and_the_instructions_are_read_once() -> None:
    schema = runpy.run_path(str(EXAMPLES / "extract.py"))["SCHEMA"]
    lines = run("extract.py").splitlines()
    assert len(lines) == 3
    for line in lines:
        text, _, read = line.rpartition(" (")
        jsonschema.validate(json.loads(text), schema)
        n_read, n_prompt = (int(word) for word in read.split() if word.isdecimal())
        assert n_read < n_prompt / 2


def test_the_event_loop_goes_on_and_a_slow_answer_is_cancelled() -> None:
    out = run("async_app.py")
    messages, beats = (int(word) for word in out.splitlines()[-1].split() if word.isdecimal())
    assert messages == 4
    assert beats > 3
