"""A run that was stopped goes on where it was; another run's answers are not taken for its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.bench.kept import FILE, Kept
from mlx_eagle.bench.metrics import Sample
from mlx_eagle.errors import EagleError

SETTINGS = {"seed": 0, "temperatures": (0.0, 1.0), "models": {"head": "h"}}


def everybody(prompt_id: int, repeat: int = 0, temperature: float = 0.0) -> list[Sample]:
    """Two contestants' generations of a prompt."""
    where = (temperature, prompt_id, "gsm8k", repeat)
    stats: dict[str, Any] = {"drafted": 3, "n_accepted_per_round": [1, 0]}
    return [Sample(name, *where, [5, 6], 1, 0.25, 0.5, stats) for name in ("plain", "auto")]


def test_what_was_kept_is_found_again_and_nothing_else(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "new" / "run", SETTINGS)
    kept.add(everybody(3))
    kept.add(everybody(3, repeat=1, temperature=0.7))
    kept.add_score(("head", 0.7, 3), ([1, 0], [2, 1]))
    again = Kept(tmp_path / "new" / "run", SETTINGS)
    for each in (kept, again):
        assert each.find(0, 0.0, 3) == everybody(3)
        assert each.find(1, 0.7, 3) == everybody(3, repeat=1, temperature=0.7)
        assert each.find(0, 0.7, 3) is None
        right, of = each.find_score(("head", 0.7, 3))
        assert (list(right), list(of)) == ([1, 0], [2, 1])
        assert each.find_score(("head", 0.0, 3)) is None
    assert (len(kept.starts), len(again.starts)) == (1, 2)


def test_a_line_that_was_being_written_is_forgotten_and_written_anew(tmp_path: Path) -> None:
    Kept(tmp_path, SETTINGS).add(everybody(0))
    file = tmp_path / FILE
    whole = file.read_bytes()
    with file.open("ab") as stream:
        stream.write(b'{"samples": [{"contest')
    again = Kept(tmp_path, SETTINGS)
    assert again.find(0, 0.0, 0) == everybody(0)
    again.add(everybody(1))
    assert file.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in file.read_text().splitlines())
    assert Kept(tmp_path, SETTINGS).find(0, 0.0, 1) == everybody(1)


def test_other_settings_are_refused_by_name_in_one_line(tmp_path: Path) -> None:
    Kept(tmp_path, SETTINGS)
    with pytest.raises(EagleError, match="with other values of seed, repeats: give the") as caught:
        Kept(tmp_path, SETTINGS | {"seed": 1, "repeats": 2})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("report.md", "x", "exists and holds no answers.jsonl"),
        (FILE, "", "does not begin with a run's settings"),
        (FILE, '{"prompt": "no line end"}', "does not begin with a run's settings"),
        (FILE, '{"a": 1}\n{"no line end": 2}', "does not begin with a run's settings"),
        (FILE, '{"settings": {"seed": 1}}\n{"begun', "with other values of"),
        (FILE, '{"begun": 1}\n', "does not begin with a run's settings"),
        (FILE, "no JSON\n", "line 1: not JSON"),
        (FILE, json.dumps({"settings": SETTINGS}) + '\n{"samples": [{}]}\n', "is damaged"),
        (FILE, json.dumps({"settings": SETTINGS}) + '\n{"samples": []}\n', "is damaged"),
        (FILE, json.dumps({"settings": SETTINGS}) + '\n{"samples": 3}\n', "is damaged"),
    ],
)
def test_a_folder_of_something_else_or_damaged_is_one_line_and_stays_as_it_was(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EagleError, match=message) as caught:
        Kept(tmp_path, SETTINGS)
    assert "\n" not in str(caught.value)
    assert (tmp_path / name).read_text() == text
    assert [item.name for item in tmp_path.iterdir()] == [name]
