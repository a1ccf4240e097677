"""Links in folders: those that a user made are followed, those of downloads are not (A7)."""

from pathlib import Path

import pytest

from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.plain_files import check_file


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("config.json", "other.safetensors", "private.txt"):
        (folder / name).write_text("{}")
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


@pytest.mark.parametrize(
    ("name", "goal"),
    [("config.json", "config.json"), ("model.safetensors", "other.safetensors")],
)
def test_a7_a_link_to_a_file_that_is_meant_is_followed(
    name: str, goal: str, mine: Path, elsewhere: Path
) -> None:
    (mine / name).symlink_to(elsewhere / goal)
    assert check_file(mine / name) == 2


def test_a7_a_link_into_the_cache_is_followed_as_the_hub_once_made_them(
    mine: Path, tmp_path: Path
) -> None:
    blobs = tmp_path / "models--owner--model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "abc").write_text("{}")
    (mine / "config.json").symlink_to(blobs / "abc")
    assert check_file(mine / "config.json") == 2


@pytest.mark.parametrize("goal", ["private.txt", "other.safetensors"])
def test_a7_a_link_to_something_else_is_refused(goal: str, mine: Path, elsewhere: Path) -> None:
    (mine / "notes.txt").symlink_to(elsewhere / goal)
    with pytest.raises(CheckpointError, match=r"notes\.txt is a link to"):
        check_file(mine / "notes.txt")


@pytest.mark.parametrize("mark", [".git", ".cache/huggingface/download"])
def test_a7_links_of_a_downloaded_repository_do_not_lead_out_of_it(
    mark: str, mine: Path, elsewhere: Path
) -> None:
    (mine / mark).mkdir(parents=True)
    (mine / "config.json").symlink_to(elsewhere / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is a link to"):
        check_file(mine / "config.json")


def test_a7_a_file_of_another_user_is_refused(
    mine: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine / "config.json").symlink_to(elsewhere / "config.json")
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(CheckpointError, match=r"config\.json is a link to"):
        check_file(mine / "config.json")
