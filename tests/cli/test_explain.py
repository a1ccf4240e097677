"""`mlx-eagle explain`: a real round of the demo pair becomes a picture."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlx_eagle.cli.explain import Explained, choose_round, default_tree, list_rounds
from mlx_eagle.cli.main import run
from mlx_eagle.errors import EagleError
from mlx_eagle.session.responses import DraftedTree
from mlx_eagle.tree_shape import TreeShape

DOCS = Path(__file__).parents[2] / "docs"
MESSAGES = [{"role": "user", "content": "What is the signature of shutil.copyfile?"}]


@pytest.fixture
def pair(demo: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The demo pair in the place of what `load` would return."""
    monkeypatch.setattr("mlx_eagle.loading.load", lambda *args, **options: demo)
    return demo


def explained(parents: list[int], path: list[int]) -> Explained:
    n = len(parents)
    return Explained([], DraftedTree(list(range(n)), parents, path, [0.0] * n), 7)


def boxes(picture: str) -> list[tuple[str, str]]:
    """Return what became of every token, and its text."""
    return re.findall(r'<g class="(\w+)"><rect [^>]*/><text class="token"[^>]*>([^<]*)<', picture)


def test_the_picture_in_the_documents_is_what_the_command_draws(
    pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "round.svg"
    assert run(["explain", "--svg", str(file)]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"{file}\n", "")
    drawn, kept = file.read_text(), (DOCS / "round.svg").read_text()
    if drawn != kept:  # another machine may round a share differently
        assert boxes(drawn) == boxes(kept)
    assert {kind for kind, _ in boxes(drawn)} == {"root", "accepted", "rejected", "target"}


def test_another_round_replaces_an_older_picture(pair: Any, tmp_path: Path) -> None:
    file = tmp_path / "round.svg"
    file.write_text("old")
    assert run(["explain", "--svg", str(file), "--tree", "3", "--round", "2"]) == 0
    kinds = [kind for kind, _ in boxes(file.read_text())]
    assert (kinds[0], kinds[-1], len(kinds)) == ("root", "target", 5)
    assert [item.name for item in tmp_path.iterdir()] == ["round.svg"]


@pytest.mark.parametrize(
    ("max_depth", "chains_only", "text"),
    [(6, False, "4x2x8"), (3, False, "3x2x6"), (6, True, "4x1x4"), (1, True, "1x1x1")],
)
def test_the_default_tree_is_one_that_target_and_head_can_do(
    max_depth: int, chains_only: bool, text: str
) -> None:
    engine: Any = SimpleNamespace(
        planners=SimpleNamespace(max_depth=max_depth),
        target=SimpleNamespace(chains_only=chains_only),
    )
    assert default_tree(engine).text == text


def test_rounds_are_those_of_the_answer(turning: Any) -> None:
    stream = list(turning.stream_generate(MESSAGES, tree=TreeShape(4, 2, 8), max_tokens=40))
    answer = [response.token for response in stream]
    rounds = list(list_rounds(stream))
    assert len(rounds) > 3
    for one in rounds:
        accepted = [one.tree.tokens[node] for node in one.tree.path]
        written = [*one.answer, *accepted, one.next_token]
        assert answer[: len(written)] == written


def test_confidences_of_siblings_are_shares(turning: Any) -> None:
    options = {"tree": TreeShape(4, 2, 8), "max_tokens": 40}
    for one in list_rounds(turning.stream_generate(MESSAGES, **options)):
        tree, shares = one.tree, one.tree.confidences()
        assert shares[0] == 1.0
        assert all(0 < share <= 1 + 1e-6 for share in shares)
        for parent in set(tree.parents[1:]):
            children = [n for n in range(1, len(shares)) if tree.parents[n] == parent]
            assert sum(shares[child] for child in children) <= 1 + 1e-5


def test_the_first_round_with_branches_that_are_accepted_in_part_is_chosen() -> None:
    chain = explained([0, 0, 1, 2], [0, 1, 2])
    missed = explained([0, 0, 0, 1], [0, 2])
    telling = explained([0, 0, 0, 1, 1], [0, 1, 4])
    rounds = [chain, missed, telling, telling]
    assert choose_round(iter(rounds), None) is telling
    assert choose_round(iter(rounds), 2) is missed
    assert choose_round(iter([missed, chain]), None) is chain
    with pytest.raises(EagleError, match="no round 5 to draw: the answer had 4 that drafted"):
        choose_round(iter(rounds), 5)


@pytest.mark.parametrize(("most", "n_rounds"), [(5, 0), (6, 1)])
def test_a_round_that_the_end_of_the_answer_cut_short_is_left_out(
    pair: Any, most: int, n_rounds: int
) -> None:
    """One token by the prompt, then a round that accepts four of eight and adds one."""
    stream = pair.stream_generate(MESSAGES, tree=TreeShape(4, 2, 8), max_tokens=most)
    assert len(list(list_rounds(stream))) == n_rounds


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing option '--svg'"),
        (["--svg", "nowhere/round.svg"], "there is no folder nowhere"),
        (["--svg", "x.svg", "--tree", "4x1x9"], "a tree of depth 4 and width 1"),
        (["--svg", "x.svg", "--round", "0"], "not in the range"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_loaded(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", *args]) == 2
    assert message in capsys.readouterr().err


def test_without_a_head_there_is_nothing_to_draw(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pair, "head", None)
    assert run(["explain", "--svg", str(tmp_path / "x.svg")]) == 1
    assert "there is no round to draw: speculation is" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
