#!/usr/bin/env python3
"""The pictures of docs/lineage.md: what each way to draft reads, its tree, what is verified.

    python benchmarks/lineage_pictures.py --out docs/lineage

They are worked examples: tokens and confidences are made up, and alike where methods are, so that
the trees can be compared; no model is run. Trees are what the code makes of them: the published
one, the likeliest nodes by ranks or by paths. The target goes on with `copy` `file` `(` `src` `,`
`dst` in all of them. The same code gives the same bytes, which a test compares.
"""

import argparse
import heapq
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path as File

from mlx_eagle.cli.explain import READS
from mlx_eagle.cli.round_picture import STYLE, Kind, Token, draw_round
from mlx_eagle.static_tree import Path, StaticTree

TEXT = "What is the signature of shutil.copyfile?\n"
ROOT = "`"
TRUTH = ("copy", "file", "(", "src", ",", "dst")
OTHERS = (  # by depth: what else is proposed there, the likelier first
    ("shutil", "move", "def"),
    ("tree", "2", "_"),
    ("obj", ".", "`"),
    ("dst", "f", "self"),
    (")", "=", ":"),
)
RANKS = (0.62, 0.2, 0.1, 0.05)  # confidence of the token of each rank, where a method has no other
# EAGLE-2 and what followed: confidences that differ from node to node. A node is written as ranks.
SURE: Mapping[Path, tuple[float, ...]] = {
    (): (0.9, 0.06),
    (0,): (0.55, 0.4),
    (0, 0): (0.95, 0.03),
    (0, 1): (0.5, 0.2),
    (0, 0, 0): (0.45, 0.35),
    (0, 0, 0, 1): (0.8, 0.1),
    (0, 0, 0, 0): (0.5, 0.2),
}
NODES = 8
MEDUSA = ((0.8, 0.1, 0.05), (0.5, 0.3, 0.1), (0.4, 0.2, 0.1))  # accuracy by depth and rank
BOX, HEIGHT, GAP = 96, 40, 14  # pixels of the pictures of training


def word(path: Path, swapped: Sequence[Path] = ()) -> str:
    """Return the token of a node: of rank 0 the target's, unless it stands in `swapped`."""
    depth, rank = len(path) - 1, path[-1]
    if path[:-1] in swapped and rank < 2:
        rank = 1 - rank
    return TRUTH[depth] if rank == 0 else OTHERS[depth][rank - 1]


def tokens_of(
    paths: Sequence[Path], confidences: Mapping[Path, float], swapped: Sequence[Path] = ()
) -> list[Token]:
    """Return a round as the picture needs it: what the target accepts follows from `TRUTH`."""
    place, right = {(): 0} | {path: at for at, path in enumerate(paths, start=1)}, {(): True}
    tokens, deepest = [Token(ROOT, 0, Kind.ROOT)], ()
    for path in paths:
        text = word(path, swapped)
        right[path] = right[path[:-1]] and text == TRUTH[len(path) - 1]
        if right[path]:
            deepest = max(deepest, path, key=len)
        kind = Kind.ACCEPTED if right[path] else Kind.REJECTED
        tokens.append(Token(text, place[path[:-1]], kind, confidences[path]))
    return [*tokens, Token(TRUTH[len(deepest)], place[deepest], Kind.TARGET)]


def likeliest(sure: Mapping[Path, tuple[float, ...]], n: int) -> list[Path]:
    """Return the n nodes of the largest products of confidences, parents first (EAGLE-2)."""
    open_nodes, chosen = [(-1.0, ())], list[Path]()
    while len(chosen) <= n and open_nodes:
        value, path = heapq.heappop(open_nodes)
        chosen.append(path)
        for rank, confidence in enumerate(sure.get(path, ())):
            heapq.heappush(open_nodes, (value * confidence, (*path, rank)))
    return sorted(chosen[1:], key=lambda path: (len(path), path))


def dynamic(method: str, sure: Mapping[Path, tuple[float, ...]], n: int = NODES) -> str:
    """Return the picture of a tree that follows the confidences."""
    paths = likeliest(sure, n)
    confidences = {path: sure[path[:-1]][path[-1]] for path in paths}
    return draw_round(TEXT, tokens_of(paths, confidences, [(0, 0, 0)]), READS[method])


def fixed(method: str, tree: StaticTree, ranks: Sequence[Sequence[float]]) -> str:
    """Return the picture of a tree of a fixed structure; `ranks` are confidences by depth.

    Below any first token the second likeliest one is right: Medusa's second head sees none of them.
    """
    confidences = {path: ranks[len(path) - 1][path[-1]] for path in tree.paths}
    return draw_round(TEXT, tokens_of(tree.paths, confidences, [(0,), (1,), (2,)]), READS[method])


def harmonized() -> str:
    """Return the picture of HASS's passes: which states the head reads when it drafts f'(5)."""
    rows = [["f(1)", "f(2)", "f(3)", "f(4)"], ["f(1)", "f(2)", "f(3)", "f'(4)"]]
    rows.append(["f(1)", "f(2)", "f'(3)", "f''(4)"])
    width, left = 720, 120
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="250" '
        f'viewBox="0 0 {width} 250" role="img">',
        "<title>The states that each pass of HASS reads</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{width - 1}" height="249" rx="10"/>',
        '<text class="small dim" x="24" y="30">states that the head reads at token 4, '
        "in each pass of training</text>",
    ]
    for at, row in enumerate(rows):
        y = 50 + at * (HEIGHT + GAP)
        parts.append(f'<text x="24" y="{y + 25}">pass {at + 1}</text>')
        for column, text in enumerate(row):
            kind = Kind.ACCEPTED if "'" in text else Kind.TARGET
            x = left + column * (BOX + GAP)
            parts.append(
                f'<g class="{kind}"><rect x="{x}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="7"/>'
                f'<text class="token" x="{x + BOX / 2:.1f}" y="{y + 25}" text-anchor="middle">'
                f"{escape(text)}</text></g>"
            )
    parts.append(
        '<text class="small dim" x="24" y="230">blue: the target\'s final states; green: what the '
        "head wrote in the passes before, as when it drafts</text>"
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


def pictures() -> dict[str, str]:
    """Return every picture, by name."""
    chain = {(0,) * depth: (confidence,) for depth, confidence in enumerate((0.9, 0.7, 0.8, 0.4))}
    copied = {(): (0.6,), (0,): (0.8,), (0, 0): (0.83, 0.1), (0, 0, 0): (0.86,)}
    joined = {path: SURE.get(path, ()) for path in SURE} | {(0, 0, 0): (0.86, 0.35)}
    return {
        "draft-model": dynamic("draft-model", chain, 4),
        "medusa": fixed("medusa", StaticTree.likeliest(MEDUSA, NODES), MEDUSA),
        "eagle1": fixed("eagle", StaticTree.published("eagle1"), [RANKS] * 5),
        "eagle2": dynamic("eagle", SURE),
        "hass": harmonized(),
        "eagle3": dynamic("eagle3", SURE),
        "ngram": dynamic("ngram", copied, 5),
        "joined": dynamic("joined", joined),
    }


def main() -> None:
    """Write all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=File, required=True, help="a folder")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures().items():
        (args.out / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
