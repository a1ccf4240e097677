"""The picture of a round: what it shows, and that any text makes well-formed SVG."""

from xml.etree import ElementTree

import pytest

from mlx_eagle.cli.round_picture import Kind, Token, arrange, draw_round, shown, summary

# def ┬─ ●zip ─┬─ ●( ── ○a
#     │        └─ ○_longest         the target's own token after "(" is "*"
#     └─ ○map
ROUND = [
    Token("def", 0, Kind.ROOT),
    Token(" zip", 0, Kind.ACCEPTED, 0.9),
    Token(" map", 0, Kind.REJECTED, 0.1),
    Token("(", 1, Kind.ACCEPTED, 0.75),
    Token("_longest", 1, Kind.REJECTED, 0.2),
    Token("a", 3, Kind.REJECTED, 0.5),
    Token("*", 3, Kind.TARGET),
]
SVG = "{http://www.w3.org/2000/svg}"


def labels(picture: str) -> list[tuple[str, list[str]]]:
    """Return kind and texts of every token of a picture, in order."""
    root = ElementTree.fromstring(picture)
    groups = [(g, [text.text or "" for text in g.iter(f"{SVG}text")]) for g in root.iter(f"{SVG}g")]
    return [(g.attrib["class"], texts) for g, texts in groups if texts]


def test_every_token_has_a_box_with_its_kind_and_confidence() -> None:
    assert labels(draw_round("x = 1\n", ROUND)) == [
        ("root", ["def"]),
        ("accepted", ["·zip", "90%"]),
        ("rejected", ["·map", "10%"]),
        ("accepted", ["(", "75%"]),
        ("rejected", ["_longest", "20%"]),
        ("rejected", ["a", "50%"]),
        ("target", ["*"]),
    ]


def test_what_is_drafted_from_is_said_above_the_tree_which_moves_down() -> None:
    plain, said = draw_round("x", ROUND), draw_round("x", ROUND, "states & tokens")
    assert "drafted from" not in plain
    assert labels(said) == labels(plain)
    root = ElementTree.fromstring(said)
    lines = {text.text: float(text.attrib["y"]) for text in root.iter(f"{SVG}text")}
    boxes = [float(group[0].attrib["y"]) for group in root.iter(f"{SVG}g")]
    assert lines["drafted from"] < lines["states & tokens"] < min(boxes)
    bottom = max(float(text.attrib["y"]) for text in root.iter(f"{SVG}text"))
    assert bottom < float(root.attrib["height"])


def test_a_level_is_a_column_and_a_branch_a_row() -> None:
    places = arrange(ROUND)
    columns = [place.x for place in places]
    rows = [place.y for place in places]
    assert columns[1] == columns[2] < columns[3] == columns[4] < columns[5] == columns[6]
    assert rows[0] == rows[1] == rows[3] == rows[5] < rows[6] < rows[4] < rows[2]
    for node, token in enumerate(ROUND[1:], start=1):
        parent = places[token.parent]
        assert places[node].x > parent.x + parent.width


def test_the_text_after_the_round_is_that_before_with_what_was_gained() -> None:
    root = ElementTree.fromstring(draw_round("x = 1\n", ROUND))
    lines = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert "x = 1 ⏎ " in lines
    assert "x = 1 ⏎ def zip(*" in lines
    inks = [(span.attrib["class"], span.text) for span in root.iter(f"{SVG}tspan")]
    assert inks[1:] == [("ink-accepted", " zip"), ("ink-accepted", "("), ("ink-target", "*")]


def test_the_summary_counts_what_was_drafted_accepted_and_gained() -> None:
    assert summary(ROUND) == (
        "5 tokens drafted, 2 accepted, 1 of the target's own: 3 tokens for one pass of the target."
    )
    nothing = [ROUND[0], ROUND[2], Token("*", 0, Kind.TARGET)]
    assert summary(nothing) == (
        "1 token drafted, 0 accepted, 1 of the target's own: 1 token for one pass of the target."
    )


@pytest.mark.parametrize(
    "text", ["</svg><script>", "a & b", "\"'", "\x00\x1b[2J", "\ud800", "漢" * 40, "x" * 200, ""]
)
def test_any_text_makes_a_well_formed_picture_of_one_size(text: str) -> None:
    tokens = [Token(text, 0, Kind.ROOT), Token(text, 0, Kind.ACCEPTED, 1.0)]
    root = ElementTree.fromstring(draw_round(text * 9, [*tokens, Token(text, 1, Kind.TARGET)]))
    assert not list(root.iter(f"{SVG}script"))
    assert len(shown(text)) <= 18
    assert float(root.attrib["width"]) <= 1200


def test_white_space_of_a_token_is_visible() -> None:
    assert shown(" a\tb\n") == "·a⇥b⏎"
    assert shown("x" * 40) == "x" * 17 + "…"


def test_the_same_round_gives_the_same_bytes_and_both_colour_schemes() -> None:
    picture = draw_round("a", ROUND)
    assert picture == draw_round("a", ROUND)
    assert "prefers-color-scheme: dark" in picture
    assert picture.count('class="card"') == 1
