"""The page at `/`: three files of the package, and Markdown turned into HTML for it.

A model's text is not to be trusted: the page may load nothing but its own files, and takes of the
HTML only the elements on its list.
"""

from importlib import resources
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from mlx_eagle.server.bodies import Body, Str
from mlx_eagle.server.delivery import Receive, Scope, Send, send_part, start_answer

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


MOST_CHARACTERS = 1 << 17  # of a text that is rendered; odd ones take seconds
MOST_BYTES = 1 << 20  # of its body


class PageFile(NamedTuple):
    """A file of the page and what it is."""

    name: str
    media: str


FILES = {
    "/": PageFile("index.html", "text/html; charset=utf-8"),
    "/page/app.js": PageFile("app.js", "text/javascript; charset=utf-8"),
    "/page/style.css": PageFile("style.css", "text/css; charset=utf-8"),
}


class MarkdownBody(Body):
    """A text that is to be rendered."""

    text: Annotated[Str, Field(max_length=MOST_CHARACTERS)]


class Page:
    """A response that sends one file of the page."""

    def __init__(self, file: PageFile) -> None:
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        folder = resources.files("mlx_eagle.server") / "page"
        body = (folder / self._file.name).read_bytes()
        headers = {
            "content-type": self._file.media,
            "content-length": str(len(body)),
            "content-security-policy": POLICY,
            "cache-control": "no-cache",
        }
        await start_answer(send, 200, headers)
        await send_part(send, body, is_last=True)


def render(body: MarkdownBody) -> dict[str, Any]:
    """Return Markdown as HTML, in which HTML of the text itself is text."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    return {"html": parser.disable("image").render(body.text)}
