"""Names become folders: local ones at once, hub ones through a fake hub on loopback.

Each download has a cache of its own. Where the process is the claim, it runs in one of its own.
"""

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hub_settings import environment_for, hub_at
from mlx_eagle.errors import HubError
from mlx_eagle.hub import download as hub
from mlx_eagle.hub.download import Repo, fetch, parse_repo

WEIGHTS = bytes(range(256)) * 1000
MANY_WEIGHTS = WEIGHTS * 90  # 23 MB: huggingface_hub writes chunks of 10.5 MB
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same weights again",
    "modeling_evil.py": b"raise SystemExit",
    "original/consolidated.safetensors": b"and again",
    "README.md": b"# A model",
}
SCRIPT = """
import json, sys
from mlx_eagle.errors import HubError
from mlx_eagle.hub.download import fetch
try:
    print(json.dumps({"folder": str(fetch(sys.argv[1]))}))
except HubError as error:
    print(json.dumps({"error": str(error)}))
"""


FakeHub = Any  # the class is in fake_hub.py, which tests cannot import


@pytest.fixture
def fake_hub(fake_hub: FakeHub) -> FakeHub:
    """The fake hub with one model that has weights in two formats, code and a second copy."""
    fake_hub.files = dict(FILES)
    return fake_hub


@pytest.fixture
def large_hub(fake_hub: FakeHub) -> FakeHub:
    """The same, with weights that come in more than one piece."""
    fake_hub.files["model.safetensors"] = MANY_WEIGHTS
    return fake_hub


def start(name: str, url: str, home: Path, **env: str) -> subprocess.Popen[str]:
    """Start `fetch(name)` in a process against the hub at `url` with its cache in `home`."""
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name],
        env=environment_for(url, home, **env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_apart(name: str, url: str, home: Path, **env: str) -> dict[str, Any]:
    """Return what `fetch(name)` did in a process of its own: its folder or error."""
    out, err = start(name, url, home, **env).communicate(timeout=60)
    assert out, err
    result: dict[str, Any] = json.loads(out)
    return result


def run(name: str, url: str, home: Path, *only: str, **env: str) -> dict[str, Any]:
    """Return what `fetch(name)` did: its folder or error, its progress calls and what it told."""
    calls: list[tuple[str, int, int]] = []
    notes: list[str] = []
    with hub_at(url, home, **env):
        try:
            folder = fetch(
                name,
                progress=lambda *call: calls.append(call),
                notify=notes.append,
                only=only or None,
            )
        except HubError as error:
            return {"error": str(error), "calls": calls}
    return {"folder": str(folder), "calls": calls, "notes": notes}


def test_a_local_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    assert fetch(tmp_path) == tmp_path
    assert fetch(str(tmp_path)) == tmp_path


def test_a_file_is_refused_with_the_advice_to_give_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(HubError, match="is a file; give the folder"):
        fetch(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        "./x",
        "../x/y",
        "/no/such",
        "~/no-such-model",
        "~no-such-user/m",
        "/" + "x" * 5000,
        "a/b/c",
        "a/b/",
    ],
)
def test_a_path_that_does_not_exist_is_never_looked_up_on_the_hub(name: str) -> None:
    with pytest.raises(HubError, match="there is no folder"):
        fetch(name)


@pytest.mark.parametrize("name", ["model", "owner/", "owner/mo del", "owner/model@", "", "a@b/c"])
def test_a_name_that_is_neither_says_how_hub_names_look(name: str) -> None:
    with pytest.raises(HubError, match="folder"):
        parse_repo(name)


def test_a_revision_follows_an_at_sign() -> None:
    assert parse_repo("owner/model") == Repo("owner/model", "main")
    assert parse_repo("owner/model@v2") == Repo("owner/model", "v2")
    assert parse_repo("owner/model@v2").name == "owner/model@v2"
    assert parse_repo("owner/model@main").name == "owner/model"


def test_a_download_brings_weights_and_json_but_no_code_and_no_second_copy(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    result = run("owner/model", fake_hub.url, tmp_path)
    folder = Path(result["folder"])
    assert sorted(path.name for path in folder.rglob("*")) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_is_asked_for_comes_alone_and_the_others_when_they_are_needed(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    first = run("owner/model", fake_hub.url, tmp_path, "config.json")
    assert [path.name for path in Path(first["folder"]).rglob("*")] == ["config.json"]
    assert fake_hub.downloads() == ["config.json"]
    assert first["calls"][-1] == ("download owner/model", 23, 23)
    fake_hub.requests.clear()
    assert run("owner/model", fake_hub.url, tmp_path, "config.json")["folder"] == first["folder"]
    assert fake_hub.downloads() == []
    assert run("owner/model", fake_hub.url, tmp_path)["folder"] == first["folder"]
    assert fake_hub.downloads() == ["model.safetensors"]


def test_offline_a_file_alone_is_enough_for_itself_and_not_for_the_model(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    folder = run("owner/model", fake_hub.url, tmp_path, "config.json")["folder"]
    alone = run("owner/model", fake_hub.url, tmp_path, "config.json", HF_HUB_OFFLINE="1")
    assert alone["folder"] == folder
    error = run("owner/model", fake_hub.url, tmp_path, HF_HUB_OFFLINE="1")["error"]
    assert "not completely in the cache" in error


def test_a_file_that_the_repository_lacks_is_named(fake_hub: FakeHub, tmp_path: Path) -> None:
    error = run("owner/model", fake_hub.url, tmp_path, "config.yaml")["error"]
    assert error == "owner/model holds no model files (config.yaml)"


def test_progress_starts_with_the_whole_size_and_ends_with_it(
    large_hub: FakeHub, tmp_path: Path
) -> None:
    total = len(MANY_WEIGHTS) + len(FILES["config.json"])
    calls = run("owner/model", large_hub.url, tmp_path)["calls"]
    assert calls[0] == ("download owner/model", 0, total)
    assert calls[-1] == ("download owner/model", total, total)
    done = [call[1] for call in calls]
    assert done == sorted(done)
    assert len(done) > 3


def test_a_pickle_is_fetched_where_there_is_nothing_better(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    del fake_hub.files["model.safetensors"]
    folder = Path(run("owner/model", fake_hub.url, tmp_path)["folder"])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_what_is_cached_is_not_downloaded_again(fake_hub: FakeHub, tmp_path: Path) -> None:
    first = run("owner/model", fake_hub.url, tmp_path)
    fake_hub.requests.clear()
    second = run("owner/model", fake_hub.url, tmp_path)
    assert second["folder"] == first["folder"]
    assert second["calls"] == []
    assert fake_hub.downloads() == []


def test_a_download_that_is_cut_goes_on_where_it_was(large_hub: FakeHub, tmp_path: Path) -> None:
    large_hub.cut_after = 14_000_000
    folder = Path(run("owner/model", large_hub.url, tmp_path)["folder"])
    assert (folder / "model.safetensors").read_bytes() == MANY_WEIGHTS
    ranges = [r for method, path, r in large_hub.requests if method == "GET" and "safetens" in path]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert ranges[1] is not None
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= 14_000_000


def test_ctrl_c_ends_a_download_and_the_next_one_keeps_finished_files(
    large_hub: FakeHub, tmp_path: Path
) -> None:
    large_hub.delay = 0.1
    process = start("owner/model", large_hub.url, tmp_path)
    while "model.safetensors" not in large_hub.downloads() or "config.json" not in str(
        list(tmp_path.rglob("*"))
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert large_hub.n_sent < len(MANY_WEIGHTS) >> 20, "it was downloaded to the end"
    assert process.returncode != 0
    large_hub.delay = 0
    large_hub.requests.clear()
    folder = Path(run("owner/model", large_hub.url, tmp_path)["folder"])
    assert (folder / "model.safetensors").read_bytes() == MANY_WEIGHTS
    assert large_hub.downloads() == ["model.safetensors"]


def test_without_a_hub_the_cache_serves(fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = run("owner/model", fake_hub.url, tmp_path)["folder"]
    assert run("owner/model", fake_hub.url, tmp_path, HF_HUB_OFFLINE="1")["folder"] == folder
    assert run("owner/model", "http://127.0.0.1:9", tmp_path)["folder"] == folder


def test_offline_a_model_that_is_not_cached_is_an_error_that_names_the_setting(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    error = run_apart("owner/model", fake_hub.url, tmp_path, HF_HUB_OFFLINE="1")["error"]
    assert "owner/model" in error
    assert "HF_HUB_OFFLINE" in error
    assert fake_hub.requests == []


def test_offline_a_half_downloaded_model_is_refused(fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = Path(run("owner/model", fake_hub.url, tmp_path)["folder"])
    (folder / "model.safetensors").unlink()
    error = run("owner/model", fake_hub.url, tmp_path, HF_HUB_OFFLINE="1")["error"]
    assert "not completely in the cache" in error


def test_no_network_is_said_as_such(tmp_path: Path) -> None:
    error = run("owner/model", "http://127.0.0.1:9", tmp_path)["error"]
    assert "cannot be reached" in error
    assert "\n" not in error


@pytest.mark.parametrize(
    ("prefix", "refusal", "words"),
    [
        ("/api", (401, "RepoNotFound"), ["no model owner/model", "hf auth login"]),
        ("/api", (404, "RepoNotFound"), ["no model owner/model"]),
        ("/owner", (403, "GatedRepo"), ["owner/model is gated", "terms", "hf auth login"]),
        ("/owner", (401, "GatedRepo"), ["owner/model is gated", "terms", "hf auth login"]),
        ("/api", (403, ""), ["refused access to owner/model (403)"]),
        ("/api", (500, ""), ["answered 500", "later"]),
    ],
)
def test_a_refusal_says_what_to_do(
    fake_hub: FakeHub, tmp_path: Path, prefix: str, refusal: tuple[int, str], words: list[str]
) -> None:
    fake_hub.refusals[prefix] = refusal
    error = run("owner/model", fake_hub.url, tmp_path)["error"]
    assert all(word in error for word in words), error
    assert "\n" not in error


def test_an_unknown_revision_is_named(fake_hub: FakeHub, tmp_path: Path) -> None:
    error = run("owner/model@v9", fake_hub.url, tmp_path)["error"]
    assert error == "owner/model has no revision v9"


def test_a_repository_without_model_files_is_refused(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.files = {"README.md": b"# A data set", "model.gguf": b"GGUF"}
    assert "holds no model files" in run("owner/model", fake_hub.url, tmp_path)["error"]


def test_a_model_larger_than_the_disk_is_refused_before_its_download(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage(".")._replace(free=1_000_000)
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(HubError, match=r"needs 4\.0 GB and .* has 0\.0 GB left"):
        hub._check_space(Repo("owner/model", "main"), 4_000_000_000)


def test_a_disk_that_fills_up_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub, "snapshot_download", full)
    with pytest.raises(HubError, match="the disk filled up while owner/model was downloaded"):
        fetch("owner/model")


PAGES = [b"<html>log in</html>", b"[]", b"{}"]
MORE_PAGES = [b"", b'"text"', b"5", b"null", b'{"id": 5}', b'{"sha": 5, "siblings": 5}', b"\xff"]


def test_b8_a_login_page_in_the_hubs_place_leaves_the_cached_model(
    fake_hub: FakeHub, tmp_path: Path, is_quick: bool
) -> None:
    folder = run("owner/model", fake_hub.url, tmp_path / "cached")["folder"]
    for fake_hub.page in PAGES if is_quick else PAGES + MORE_PAGES:
        found = run("owner/model", fake_hub.url, tmp_path / "cached")
        assert found["folder"] == folder
        (note,) = found["notes"]
        assert note.endswith("for owner/model; the copy in the cache is used")
        error = run("owner/model", fake_hub.url, tmp_path / "empty")["error"]
        assert "is not the hub (a login page of the network, perhaps) for owner/model" in error
        assert "\n" not in error


def test_a_fault_in_a_callback_is_not_the_hubs(fake_hub: FakeHub, tmp_path: Path) -> None:
    def fail(*told: Any) -> None:
        raise KeyError(told)

    for callback in ({"progress": fail}, {"before": fail}):
        with hub_at(fake_hub.url, tmp_path), pytest.raises(KeyError):
            fetch("owner/model", **callback)


def test_a_listing_takes_what_is_there_and_refuses_what_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    assert hub.list_files(tmp_path) == ({"config.json": 2}, 0)
    for ask in (hub.list_files, fetch):
        with pytest.raises(HubError, match="a--b/c cannot be the name of a model"):
            ask("a--b/c")
