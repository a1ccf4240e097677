"""A round of speculative decoding as an SVG picture: data in, text out.

Left to right: the newest token of the text, the tokens that the head drafted after it, and the
target's own token after the last drafted one that it accepted. What a round did is decided
elsewhere; here it is drawn. The same round gives the same bytes.
"""

from enum import StrEnum
from html import escape
from typing import NamedTuple

from rich.cells import cell_len

PICTURES = str.maketrans({"\n": "⏎", "\t": "⇥"})
LONGEST = 18  # characters of a token that are shown
CHAR, LETTER = 9.2, 6.5  # pixels: a character of a token, a letter of small text; on the safe side
BOX_HEIGHT, ROW, GAP, PADDING, MARGIN = 42, 54, 46, 12, 24  # pixels
HEADER, FOOTER = 84, 140  # pixels above and below the tree
NARROWEST = 720  # pixels
READS = 44  # pixels of the lines that say what the tokens were drafted from
KEEP = 'xml:space="preserve"'  # spaces as they are

STYLE = """
  .card { fill: #ffffff; stroke: #d0d7de }
  text { font-family: ui-sans-serif, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif;
         font-size: 14px; fill: #1f2328 }
  .token { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
           monospace; font-size: 15px; white-space: pre }
  .small { font-size: 12px }
  .dim, .rejected text { fill: #656d76 }
  rect { stroke-width: 1.5 }
  path { fill: none; stroke: #afb8c1 }
  .root rect { fill: #eaeef2; stroke: #57606a }
  .accepted rect { fill: #dafbe1; stroke: #1a7f37; stroke-width: 2 }
  .rejected rect { fill: #ffffff; stroke: #afb8c1; stroke-dasharray: 4 3 }
  .target rect { fill: #ddf4ff; stroke: #0969da; stroke-width: 2 }
  path.accepted { stroke: #1a7f37 }
  path.target { stroke: #0969da; stroke-dasharray: 5 4 }
  .ink-accepted { fill: #1a7f37; font-weight: 600 }
  .ink-target { fill: #0969da; font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #30363d }
    text { fill: #e6edf3 }
    .dim, .rejected text { fill: #9198a1 }
    path { stroke: #484f58 }
    .root rect { fill: #21262d; stroke: #8b949e }
    .accepted rect { fill: #12361f; stroke: #3fb950 }
    .rejected rect { fill: #0d1117; stroke: #484f58 }
    .target rect { fill: #0c2d4d; stroke: #58a6ff }
    path.accepted { stroke: #3fb950 }
    path.target { stroke: #58a6ff }
    .ink-accepted { fill: #3fb950 }
    .ink-target { fill: #58a6ff }
  }
"""


class Kind(StrEnum):
    """What became of a token; the names are those of the style."""

    ROOT = "root"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    TARGET = "target"


class Token(NamedTuple):
    """A token of the picture.

    Attributes:
        text: as the tokenizer spells it.
        parent: the token before it; the first one is its own.
        kind: what became of it.
        confidence: the head's probability of it after the tokens before; None if the head did not
            draft it.
    """

    text: str
    parent: int
    kind: Kind
    confidence: float | None = None


class Place(NamedTuple):
    """Where a token's box is, in pixels: its left edge, its middle row, its width."""

    x: float
    y: float
    width: float


def draw_round(before: str, tokens: list[Token], reads: str = "") -> str:
    """Return the picture of a round.

    Args:
        before: the end of the text before the first token.
        tokens: parents first; the first one is the root.
        reads: what the tokens were drafted from; nothing is said of it where it is empty.
    """
    places = [place._replace(y=place.y + (READS if reads else 0)) for place in arrange(tokens)]
    right = max(place.x + place.width for place in places)
    bottom = max(place.y for place in places) + BOX_HEIGHT / 2
    width, height = max(right + MARGIN, NARROWEST), bottom + FOOTER
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img">',
        f"<title>{escape(summary(tokens))}</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" '
        'rx="10"/>',
        *_header(before, width, reads),
        *_edges(tokens, places),
        *(_box(token, place) for token, place in zip(tokens, places, strict=True)),
        *_legend(bottom + 36),
        *_outcome(before, tokens, width, bottom + 72),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def arrange(tokens: list[Token]) -> list[Place]:
    """Return the place of every token: a column per level, a row per branch.

    A token stands in the row of its first child, so that what is likeliest reads straight on.
    """
    depths, widths = [0] * len(tokens), [_width(token) for token in tokens]
    for node, token in enumerate(tokens[1:], start=1):
        depths[node] = depths[token.parent] + 1
    columns = [float(MARGIN)]
    for level in range(max(depths)):
        widest = max(w for w, depth in zip(widths, depths, strict=True) if depth == level)
        columns.append(columns[-1] + widest + GAP)
    rows = _rows(tokens)
    return [
        Place(columns[depth], HEADER + BOX_HEIGHT / 2 + ROW * row, width)
        for depth, row, width in zip(depths, rows, widths, strict=True)
    ]


def _rows(tokens: list[Token]) -> list[int]:
    """Return the row of every token."""
    children: list[list[int]] = [[] for _ in tokens]
    for node, token in enumerate(tokens[1:], start=1):
        children[token.parent].append(node)
    rows, n_leaves, waiting = [0] * len(tokens), 0, [0]
    while waiting:
        node = waiting.pop()
        rows[node] = n_leaves  # of its first leaf, which is met next
        n_leaves += not children[node]
        waiting += reversed(children[node])
    return rows


def summary(tokens: list[Token]) -> str:
    """Return what the round did, in a sentence."""
    n_accepted = sum(token.kind is Kind.ACCEPTED for token in tokens)
    n_drafted = n_accepted + sum(token.kind is Kind.REJECTED for token in tokens)
    return (
        f"{_count(n_drafted)} drafted, {n_accepted} accepted, 1 of the target's own: "
        f"{_count(n_accepted + 1)} for one pass of the target."
    )


def _count(n: int) -> str:
    return f"{n} token" if n == 1 else f"{n} tokens"


def shown(text: str) -> str:
    """Return a token's text on one line: spaces visible, cut if it is long."""
    return _cut(text).replace(" ", "·")


def _cut(text: str) -> str:
    """Return a token's text on one line, cut if it is long."""
    line = _line(text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _line(text: str) -> str:
    """Return text on one line, without control characters, which XML does not allow."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text.translate(PICTURES))


def _end(text: str, room: float) -> str:
    """Return the end of a text on one line of so many pixels."""
    line, n = _line(text.replace("\n", " \n ")), int(room / CHAR)
    if cell_len(line) <= n:
        return line
    while line and cell_len(line) > n - 1:
        line = line[1:]
    return f"…{line}"


def _width(token: Token) -> float:
    """Return how wide a token's box is, in pixels."""
    return max(cell_len(shown(token.text)) * CHAR, 3.5 * CHAR) + 2 * PADDING


def _header(before: str, width: float, reads: str) -> list[str]:
    """Return the lines above the tree: the end of the text so far, what the drafter reads."""
    end = escape(_end(before, width - 2 * MARGIN))
    lines = [
        _label("text so far", 30),
        f'<text class="token" x="{MARGIN}" y="54" {KEEP}>{end}</text>',
    ]
    if reads:
        lines += [_label("drafted from", 78), f'<text x="{MARGIN}" y="98">{escape(reads)}</text>']
    return lines


def _legend(y: float) -> list[str]:
    """Return the line that says what the colours and figures mean."""
    parts, x = [], float(MARGIN)
    for kind, words in (
        (Kind.ACCEPTED, "accepted"),
        (Kind.REJECTED, "rejected"),
        (Kind.TARGET, "target's own token"),
    ):
        parts.append(
            f'<g class="{kind}"><rect x="{x:.1f}" y="{y - 11:.1f}" width="18" height="14" rx="4"/>'
            f'</g><text class="small dim" x="{x + 26:.1f}" y="{y:.1f}">{words}</text>'
        )
        x += 26 + LETTER * len(words) + 22
    words = "%  how sure the head was"
    parts.append(f'<text class="small dim" x="{x:.1f}" y="{y:.1f}" {KEEP}>{words}</text>')
    return parts


def _outcome(before: str, tokens: list[Token], width: float, y: float) -> list[str]:
    """Return the last lines: the end of the text after the round, and what the round did."""
    kept = [token for token in tokens if token.kind is not Kind.REJECTED]
    texts = [_cut(token.text) for token in kept]
    room = width - 2 * MARGIN - CHAR * cell_len("".join(texts))
    spans = "".join(
        f'<tspan class="ink-{token.kind}">{escape(text)}</tspan>'
        for token, text in zip(kept, texts, strict=True)
    )
    return [
        _label("text after the round", y),
        f'<text class="token" x="{MARGIN}" y="{y + 24:.1f}" {KEEP}>{escape(_end(before, room))}'
        f"{spans}</text>",
        f'<text x="{MARGIN}" y="{y + 50:.1f}">{escape(summary(tokens))}</text>',
    ]


def _label(words: str, y: float) -> str:
    """Return what stands above a line of text."""
    return f'<text class="small dim" x="{MARGIN}" y="{y:.1f}">{words}</text>'


def _edges(tokens: list[Token], places: list[Place]) -> list[str]:
    """Return the lines between tokens, those of the accepted path above the others."""
    order = [Kind.REJECTED, Kind.TARGET, Kind.ACCEPTED]
    nodes = sorted(range(1, len(tokens)), key=lambda node: order.index(tokens[node].kind))
    return [_edge(tokens[node], places[tokens[node].parent], places[node]) for node in nodes]


def _edge(token: Token, start: Place, end: Place) -> str:
    """Return the line to a token; the surer the head, the thicker."""
    left, right = start.x + start.width, end.x
    middle = right - GAP / 2
    thickness = 1 + 3 * (token.confidence or 0.3)
    return (
        f'<path class="{token.kind}" stroke-width="{thickness:.1f}" d="M {left:.1f} {start.y:.1f} '
        f'C {middle:.1f} {start.y:.1f}, {middle:.1f} {end.y:.1f}, {right:.1f} {end.y:.1f}"/>'
    )


def _box(token: Token, place: Place) -> str:
    """Return the box of a token with its text and the head's confidence."""
    center, top = place.x + place.width / 2, place.y - BOX_HEIGHT / 2
    is_drafted = token.confidence is not None
    text_y = place.y - 1 if is_drafted else place.y + 5
    share = (
        f'<text class="small" x="{center:.1f}" y="{place.y + 15:.1f}" text-anchor="middle">'
        f"{token.confidence:.0%}</text>"
        if is_drafted
        else ""
    )
    return (
        f'<g class="{token.kind}"><rect x="{place.x:.1f}" y="{top:.1f}" width="{place.width:.1f}" '
        f'height="{BOX_HEIGHT}" rx="7"/><text class="token" x="{center:.1f}" y="{text_y:.1f}" '
        f'text-anchor="middle">{escape(shown(token.text))}</text>{share}</g>'
    )
