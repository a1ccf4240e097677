"""A hub on loopback that holds one model, for tests of downloads."""

import hashlib
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHA = "a" * 40


class FakeHub(ThreadingHTTPServer):
    """The five requests of a download of owner/model.

    Attributes:
        files: what owner/model holds.
        refusals: (status, error code) by path prefix.
        page: what answers everything in the hub's place, with status 200; None: the hub does.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.page: bytes | None = None
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut_after = 0  # bytes after which the next download of weights is cut, once
        self.delay = 0.0  # seconds before every MB
        self.n_sent = 0  # MB of files
        self.n_bytes = 0  # of files, as far as they were asked for
        self.sends_parts = True

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
        if self.server.page is not None:
            self._send(200, self.server.page, {"Content-Type": "text/html"})
            return
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
        end = len(data)
        wanted = self.headers.get("Range") if self.server.sends_parts else None
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1 if last else len(data)
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            status = 206
        if with_body and self.command == "GET":
            self.server.n_bytes += end - start
        self._send(status, data[start:end], headers, with_body)

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
            self.server.n_sent += 1
        if cut:
            self.close_connection = True
            self.connection.close()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
