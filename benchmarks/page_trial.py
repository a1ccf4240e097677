#!/usr/bin/env python3
"""The page of a server, used by a browser as a person would.

    python benchmarks/page_trial.py [--model demo] [--browser chromium] [--pictures FOLDER]

Starts a server and a headless Chromium, which it drives by DevTools over a pipe. It types, watches
the answer arrive, stops one, looks at tints and at the tree of a round, loads the page anew, lets
an answer hold HTML, asks for the page under a foreign name and for answers from a page of another
origin, and takes pictures in light and dark. Prints one line per promise, and exits with 1 if one
was not kept.
"""

import argparse
import shutil
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
from browser import FOREIGN, Browser
from server_process import ServerProcess

QUESTION = "What does os.path.join do?"
TREE = "4x2x6"  # the planner of a busy machine may draft nothing
HTML = "<img src=x onerror=document.title='run'>"
ASK = """(text) => {
  document.getElementById('text').value = text;
  document.getElementById('ask').requestSubmit();
}"""
ELSEWHERE = """async (url) => {
  const got = [];
  for (const [mode, media] of [['cors', 'application/json'], ['no-cors', 'text/plain']]) {
    const body = '{"messages":[{"role":"user","content":"x"}],"max_tokens":1}';
    const options = { method: 'POST', mode, body, headers: { 'Content-Type': media } };
    got.push(await fetch(url, options).then((answer) => answer.type, () => 'nothing'));
  }
  return got;
}"""
STATE = """() => ({
  said: [...document.querySelectorAll('.assistant .said')].map(e => e.textContent),
  tints: document.querySelectorAll('.said i').length,
  tree: [...document.querySelectorAll('.tree')].map(e => e.textContent).join('\\n'),
  figures: [...document.querySelectorAll('.figures')].map(e => e.textContent),
  errors: [...document.querySelectorAll('.error')].map(e => e.textContent),
  asked: document.querySelectorAll('article.user').length,
  images: document.querySelectorAll('main img').length,
  title: document.title,
  idle: document.getElementById('stop').hidden,
})"""


class Trial:
    """One run of a page through all that it promises.

    Args:
        browser: that shows it.
        url: of the server.
        pictures: the folder for them.

    Attributes:
        results: promises, and whether they were kept.
    """

    def __init__(self, browser: Browser, url: str, pictures: Path) -> None:
        self._browser, self._url, self._pictures = browser, url, pictures
        self.results: dict[str, bool] = {}

    def run(self) -> None:
        """Try everything."""
        self._browser.open(self._url)
        self._set("max", 120)
        self._set("temperature", 0)
        self._set("tree", TREE)
        self._ask_and_watch()
        self._hover()
        self._stop()
        self._reload()
        self._show_html()
        self._compare()
        for scheme in ("light", "dark"):
            self._browser.picture(self._pictures / f"page-{scheme}.png", scheme)
        own = [url for url in self._browser.asked if not url.startswith((self._url, "data:"))]
        self.results["asks no other host"] = not own
        self.results["no error in the console"] = not self._browser.console
        self._rebind()
        self._ask_from_elsewhere()

    def _set(self, name: str, value: Any) -> None:
        self._browser.evaluate("(n, v) => { document.getElementById(n).value = v }", name, value)

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._browser.evaluate(STATE)
        return state

    def _wait_idle(self) -> None:
        self._browser.wait("() => document.getElementById('stop').hidden")

    def _ask_and_watch(self) -> None:
        """Type a question as a person does, and watch the answer arrive."""
        self._browser.evaluate("() => document.getElementById('text').focus()")
        self._browser.call("Input.insertText", text=QUESTION)
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}
            self._browser.call("Input.dispatchKeyEvent", type=kind, **key)
        lengths = set[int]()
        tints = 0
        while not (state := self._state())["idle"] or not state["said"]:
            lengths.add(len("".join(state["said"])))
            tints = max(tints, state["tints"])
        self.results["the answer streams"] = len(lengths) > 3
        self.results["accepted drafts are tinted"] = tints > 0
        figures = state["figures"][-1]
        self.results["figures of speed are shown"] = "per second" in figures
        self.results["what was typed is shown"] = state["asked"] == 1

    def _hover(self) -> None:
        """Point at a tinted word of the answer: the tree of its round is drawn."""
        self._browser.wait(
            "() => document.querySelector('.assistant .done i[data-round]') !== null"
        )
        before = self._state()["tree"]
        place = self._browser.evaluate(
            """() => {
              const word = document.querySelector('.assistant .done i[data-round]');
              word.scrollIntoView({ block: 'center' });
              const box = word.getClientRects()[0];
              return [box.x + box.width / 2, box.y + box.height / 2];
            }"""
        )
        self._browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
        tree = self._state()["tree"]
        self.results["the tree of a round is drawn on hover"] = tree != before and "●" in tree
        self._browser.picture(self._pictures / "page-hover.png", "light")

    def _stop(self) -> None:
        """Stop an answer on its way."""
        self._set("max", 1500)
        self._browser.evaluate(ASK, "Tell all about os.path.")
        self._browser.wait(
            "() => [...document.querySelectorAll('.said')].at(-1)?.textContent.length > 20"
        )
        self._browser.evaluate("() => document.getElementById('stop').click()")
        self._wait_idle()
        self._browser.wait("() => [...document.querySelectorAll('.said')].at(-1).matches('.done')")
        text = self._state()["said"][-1]
        self.results["an answer can be stopped"] = 0 < len(text) < 5000
        self._set("max", 60)

    def _reload(self) -> None:
        """Load the page anew: the conversation is still there."""
        before = self._state()
        self._browser.open(self._url)
        self._browser.wait("() => document.querySelectorAll('article').length > 0")
        after = self._state()
        same = (before["asked"], len(before["said"])) == (after["asked"], len(after["said"]))
        self.results["a reload keeps the conversation"] = same

    def _show_html(self) -> None:
        """Let an answer hold HTML, written by the model itself under a schema of one text."""
        schema = {"enum": [HTML]}
        self._browser.evaluate(
            """(schema) => {
              const ask = window.fetch;
              window.fetch = (path, options) => {
                if (!String(path).includes('chat/completions')) return ask(path, options);
                const body = JSON.parse(options.body);
                body.response_format = { type: 'json_schema', json_schema: { schema } };
                return ask(path, { ...options, body: JSON.stringify(body) });
              };
            }""",
            schema,
        )
        self._set("max", 60)
        self._browser.evaluate(ASK, "Write HTML.")
        self._browser.wait("() => document.getElementById('stop').hidden === false")
        self._wait_idle()
        self._browser.wait("() => [...document.querySelectorAll('.said')].at(-1).matches('.done')")
        state = self._state()
        self.results["HTML of a model is text"] = (
            HTML in state["said"][-1] and not state["images"] and state["title"] == "mlx-eagle"
        )
        self._browser.open(self._url)  # with the page's own fetch again
        self._browser.wait("() => document.querySelectorAll('article').length > 0")

    def _compare(self) -> None:
        """Ask for the same text without drafts."""
        self._set("temperature", 0)
        self._set("max", 120)
        self._set("tree", TREE)
        self._browser.evaluate(
            """() => [...document.querySelector('.assistant').querySelectorAll('button')]
              .find(e => e.textContent.startsWith('Same text')).click()"""
        )
        self._browser.wait("() => document.body.textContent.includes('The same text · ')")
        self._wait_idle()
        self.results["the same text without drafts"] = True

    def _rebind(self) -> None:
        """Ask for the page under a name that somebody else lets lead here."""
        self._browser.open(self._url.replace("127.0.0.1", FOREIGN))
        text = self._browser.evaluate("() => document.body.textContent")
        self.results["a foreign name gets no page"] = "--allow-host" in text

    def _ask_from_elsewhere(self) -> None:
        """Ask from a page of another origin, in both of the ways that browsers have."""
        before = self._n_answers()
        with HTTPServer(("127.0.0.1", 0), OtherPage) as other:
            threading.Thread(target=other.serve_forever, daemon=True).start()
            self._browser.open(f"http://localhost:{other.server_port}/")
            got = self._browser.evaluate(ELSEWHERE, f"{self._url}/v1/chat/completions")
            other.shutdown()
        is_refused = got == ["nothing", "opaque"] and self._n_answers() == before
        self.results["a page of another origin gets no answer"] = is_refused

    def _n_answers(self) -> str:
        """Return how many answers the server has given, as it counts them."""
        text = httpx2.get(f"{self._url}/metrics").text
        start = 'mlx_eagle_requests_total{api="chat",status="200"} '
        return next(
            line.removeprefix(start) for line in text.splitlines() if line.startswith(start)
        )


class OtherPage(BaseHTTPRequestHandler):
    """A page that is not the server's."""

    def do_GET(self) -> None:
        """Send it."""
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<title>other</title>")

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Parse the command line, use the page, print what was kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--browser", default="chromium")
    parser.add_argument("--pictures", type=Path, default=Path("."))
    args = parser.parse_args()
    program = shutil.which(args.browser)
    if program is None:
        raise SystemExit(f"there is no command {args.browser}; --browser names another one")
    args.pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = ServerProcess(
            Path(folder), "--model", args.model, "--no-calibrate", "--no-disk-cache"
        )
        browser = Browser(program, Path(folder) / "browser")
        trial = Trial(browser, server.url, args.pictures)
        try:
            trial.run()
        finally:
            browser.close()
            server.stop()
    for promise, is_kept in trial.results.items():
        print(f"{'yes' if is_kept else 'NO '} {promise}")
    print("\n".join(browser.console))
    raise SystemExit(0 if all(trial.results.values()) else 1)


if __name__ == "__main__":
    main()
