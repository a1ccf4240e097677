"""Names become folders: local ones at once, hub ones through a fake hub on loopback.

Each download runs in a process of its own, with HF_ENDPOINT and HF_HOME of its own, because
huggingface_hub reads its settings when it is imported.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle import hub
from mlx_eagle.errors import HubError
from mlx_eagle.hub import Repo, fetch, parse_repo

SHA = "a" * 40
WEIGHTS = bytes(range(256)) * 90_000  # 23 MB: huggingface_hub writes chunks of 10.5 MB
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
from mlx_eagle.hub import fetch
calls = []
try:
    folder = fetch(sys.argv[1], progress=lambda *call: calls.append(call))
    print(json.dumps({"folder": str(folder), "calls": calls}))
except HubError as error:
    print(json.dumps({"error": str(error), "calls": calls}))
"""


class FakeHub(ThreadingHTTPServer):
    """The five requests of a download; `refusals` maps a path prefix to (status, error code)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.refusals: dict[str, tuple[int, str]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after = 0  # bytes after which the next download of weights is cut, once
        self.delay = 0.0  # seconds before every MB

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.requests if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._serve(with_body=False)

    def do_GET(self) -> None:
        self._serve(with_body=True)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if "/resolve/" in path or with_body is False:
            self.server.requests.append((self.command, path, self.headers.get("Range")))
        for prefix, (status, code) in self.server.refusals.items():
            if path.startswith(prefix):
                self._send(status, b"", {"X-Error-Code": code} if code else {})
                return
        if path.startswith("/api/models/owner/model/revision/main"):
            self._json({"id": "owner/model", "sha": SHA, "siblings": []})
        elif path.startswith(f"/api/models/owner/model/tree/{SHA}"):
            self._json([self._entry(name, data) for name, data in self.server.files.items()])
        elif path.startswith(f"/owner/model/resolve/{SHA}/"):
            self._file(self.server.files[path.split(SHA + "/", 1)[1]], with_body)
        elif path.startswith("/api/models/owner/model/revision/"):
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, data: bytes, with_body: bool) -> None:
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        status, start = 200, 0
        wanted = self.headers.get("Range")
        if wanted:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status = 206
        self._send(status, data[start:], headers, with_body)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], with_body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body or self.command == "HEAD":
            return
        cut = self.server.cut_after if len(body) > 1_000_000 else 0
        if cut:
            self.server.cut_after = 0
            body = body[:cut]
        for first in range(0, len(body), 1 << 20):
            time.sleep(self.server.delay)
            self.wfile.write(body[first : first + (1 << 20)])
        if cut:
            self.close_connection = True
            self.connection.close()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def start(name: str, url: str, home: Path, **env: str) -> subprocess.Popen[str]:
    """Start `fetch(name)` in a process against the hub at `url` with its cache in `home`."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, name],
        env=clean | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(name: str, url: str, home: Path, **env: str) -> dict[str, Any]:
    """Return what `fetch(name)` did: its folder or error, and its progress calls."""
    out, err = start(name, url, home, **env).communicate(timeout=60)
    assert out, err
    result: dict[str, Any] = json.loads(out)
    return result


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


def test_progress_starts_with_the_whole_size_and_ends_with_it(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    total = len(WEIGHTS) + len(FILES["config.json"])
    calls = run("owner/model", fake_hub.url, tmp_path)["calls"]
    assert calls[0] == ["download owner/model", 0, total]
    assert calls[-1] == ["download owner/model", total, total]
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


def test_a_download_that_is_cut_goes_on_where_it_was(fake_hub: FakeHub, tmp_path: Path) -> None:
    fake_hub.cut_after = 14_000_000
    folder = Path(run("owner/model", fake_hub.url, tmp_path)["folder"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [r for method, path, r in fake_hub.requests if method == "GET" and "safetens" in path]
    assert len(ranges) == 2
    assert ranges[0] is None
    assert ranges[1] is not None
    assert 0 < int(ranges[1].removeprefix("bytes=").rstrip("-")) <= 14_000_000


def test_ctrl_c_ends_a_download_and_the_next_one_keeps_finished_files(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    fake_hub.delay = 0.25
    process = start("owner/model", fake_hub.url, tmp_path)
    while "model.safetensors" not in fake_hub.downloads() or "config.json" not in str(
        list(tmp_path.rglob("*"))
    ):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert time.monotonic() - started < 20
    assert process.returncode != 0
    fake_hub.delay = 0
    fake_hub.requests.clear()
    folder = Path(run("owner/model", fake_hub.url, tmp_path)["folder"])
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert fake_hub.downloads() == ["model.safetensors"]


def test_without_a_hub_the_cache_serves(fake_hub: FakeHub, tmp_path: Path) -> None:
    folder = run("owner/model", fake_hub.url, tmp_path)["folder"]
    assert run("owner/model", fake_hub.url, tmp_path, HF_HUB_OFFLINE="1")["folder"] == folder
    assert run("owner/model", "http://127.0.0.1:9", tmp_path)["folder"] == folder


def test_offline_a_model_that_is_not_cached_is_an_error_that_names_the_setting(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    error = run("owner/model", fake_hub.url, tmp_path, HF_HUB_OFFLINE="1")["error"]
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
