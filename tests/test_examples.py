"""The example apps run as they are, with the toy pair."""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import mlx_eagle
from cases import broad
from mlx_eagle.calibration import planners
from mlx_eagle.planner.cost_model import Costs

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine on record, of which the apps need not measure anything: rows cost their number."""
    folder = tmp_path_factory.mktemp("records")
    rows = {n: (0.01 * n,) for n in range(1, 5)}
    costs = Costs((64,), rows, (0.01,), (0.002, 0.004, 0.006), 0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_EAGLE_CACHE", str(folder))
        patch.setattr(planners, "measure", lambda *_: costs)
        mlx_eagle.load()
    return folder


@pytest.fixture(autouse=True)
def own_records(records: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is on record for the apps is not for the tests after them, and is what they take."""
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(records))
    before = [file.name for file in (records / "costs").iterdir()]
    yield
    assert [file.name for file in (records / "costs").iterdir()] == before, "an app measured"


def run(name: str, *arguments: str) -> str:
    """Run an app as a user does."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(name: str, *arguments: str) -> str:
    """Run an app in this process, which has imported what it needs."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return out.getvalue()


@pytest.mark.parametrize("start", [run_here, broad(run)])
def test_the_smallest_app_streams_an_answer(start: Callable[..., str]) -> None:
    out = start("stream.py", "What is the signature of zip?")
    assert "zip" in out
    assert "target forwards" in out


def test_texts_become_json_of_the_schema_and_the_instructions_are_read_once(
    turning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlx_eagle, "load", lambda: turning)
    schema = runpy.run_path(str(EXAMPLES / "extract.py"))["SCHEMA"]
    lines = run_here("extract.py").splitlines()
    assert len(lines) == 3
    for line in lines:
        text, _, read = line.rpartition(" (")
        jsonschema.validate(json.loads(text), schema)
        n_read, n_prompt = (int(word) for word in read.split() if word.isdecimal())
        assert n_read < n_prompt / 2


def test_the_event_loop_goes_on_and_a_slow_answer_is_cancelled() -> None:
    out = run_here("async_app.py")
    messages, beats = (int(word) for word in out.splitlines()[-1].split() if word.isdecimal())
    assert messages == 4
    assert beats > 3
