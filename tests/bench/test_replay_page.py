"""The page that plays answers side by side: read as a browser reads it, against the recordings."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from mlx_eagle.bench.contestants import Setting
from mlx_eagle.bench.recording import Arrival, Played, Recording, Way, record
from mlx_eagle.bench.replay_page import to_page, verdict
from mlx_eagle.cli.main import run
from mlx_eagle.tree_shape import TreeShape

HOSTILE = (
    "</span><script>alert(\"1\")</script> & <b title='x'>\x1b[31m\r\n\t\u202e\u202f\u3000\u200d"
)


class Shown(NamedTuple):
    """A token in the page."""

    text: str
    is_draft: bool
    seconds: float


class Page(HTMLParser):
    """What a page holds: tags, attributes that lead elsewhere, tokens by article, other text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.articles: list[list[Shown]] = []
        self.words: list[str] = []
        self._open: dict[str, str | None] | None = None
        self._text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [name for name, _ in attrs if name in ("src", "href", "srcset", "action")]
        self.links += [name for name, _ in attrs if name.startswith("on")]
        if tag == "article":
            self.articles.append([])
        if tag == "span" and "data-t" in dict(attrs):
            self._open, self._text = dict(attrs), ""

    def handle_data(self, data: str) -> None:
        self._text += data
        self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "span" and self._open is not None:
            seconds = float(str(self._open["data-t"]))
            is_draft = self._open.get("class") == "drafted"
            self.articles[-1].append(Shown(self._text, is_draft, seconds))
            self._open = None


def recording(name: str, *texts: str, pace: float = 0.5) -> Recording:
    """An answer whose every other token was drafted."""
    arrivals = [Arrival(t, i, i % 2 == 1, pace * (i + 1)) for i, t in enumerate(texts)]
    return Recording(name, arrivals, 2.0)


def page_of(*texts: str, question: str = "Why?") -> Page:
    """The page of one question with the same answer twice."""
    answers = [recording("plain", *texts), recording("auto", *texts, pace=0.25)]
    return Page(to_page([Played(question, answers)], {"command": "mlx-eagle bench <x>"}, 1))


def test_text_of_models_and_users_cannot_leave_its_place() -> None:
    plain, hostile = page_of("a", "b"), page_of(HOSTILE, "b", question=HOSTILE)
    assert hostile.tags == plain.tags
    assert hostile.tags.count("script") == 1
    wanted = HOSTILE.replace("\x1b", "\ufffd").replace("\r", "\ufffd").replace("\u202e", "\ufffd")
    assert hostile.articles[0][0].text == wanted
    assert any(wanted in words for words in hostile.words)
    assert "mlx-eagle bench <x>" in hostile.words


def test_the_page_names_nothing_outside_of_itself() -> None:
    page = page_of("a")
    text = to_page([], {}, 1)
    assert page.links == []
    assert not re.search(r"https?:|url\(|import |fetch\(|@import", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_the_verdict_says_whether_the_texts_are_the_same() -> None:
    plain = recording("plain", "a", "b", "c", "d")
    same = Played("?", [plain, recording("auto", "a", "b", "c", "d", pace=0.25)])
    assert verdict(same) == (
        "The same text, token by token (4 tokens). auto took 1.00 s where plain decoding took "
        "2.00 s: 2.00 times as fast."
    )
    other = plain.arrivals[2]._replace(token=99)
    parted = recording("auto", "a", "b")._replace(arrivals=[*plain.arrivals[:2], other])
    assert "part after 2 tokens" in verdict(Played("?", [plain, parted]))
    short = recording("auto", "a", "b", "c")
    assert "part after 3 tokens" in verdict(Played("?", [plain, short]))


def test_times_are_those_at_which_tokens_came_of_the_repeat_of_median_length() -> None:
    lengths = iter([5, 5, 3, 3, 4, 4])  # ways take turns
    asked, ticks = list[dict[str, Any]](), iter(range(100))

    def stream_generate(prompt: list[int], **options: Any) -> Any:
        asked.append(options)
        assert prompt == [7]
        n = next(lengths)
        stats = SimpleNamespace(acceptance_length=1.5)
        for i in range(n):
            last = stats if i == n - 1 else None
            yield SimpleNamespace(text=f"{i}", token=i, from_draft=i == 1, stats=last)

    engine: Any = SimpleNamespace(stream_generate=stream_generate)
    ways = [
        Way("plain", engine, {"speculate": False}),
        Way.drafting("chain:2", engine, TreeShape.chain(2)),
    ]
    clock = lambda: float(next(ticks))  # noqa: E731
    plain, other = record(ways, [7], Setting(6, False, 0.5, 3), 3, clock)
    wanted = [Arrival(f"{i}", i, i == 1, i + 1.0) for i in range(4)]
    assert plain == ("plain", wanted, 1.5) and other == ("chain:2", wanted, 1.5)
    assert (plain.seconds, plain.tokens) == (4.0, [0, 1, 2, 3])
    assert [("tree" in options, options["seed"]) for options in asked] == [
        *[(False, 3), (True, 3)],
        *[(True, 3), (False, 3)],
        *[(False, 3), (True, 3)],
    ]


def test_the_command_writes_a_page_with_the_measured_times(
    turning: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("mlx_eagle.loading.load", lambda *args, **options: turning)
    file = tmp_path / "replay.html"
    args = ["bench", "--replay", str(file), "-n", "6", "--warmup", "0", "--compare", "chain:3"]
    assert run([*args, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    page = Page(file.read_text())
    assert len(record["questions"]) == 3, "one of every category of the built-in prompts"
    answers = [answer for one in record["questions"] for answer in one["answers"]]
    assert [a["contestant"] for a in answers] == ["plain", "chain:3"] * 3
    assert len(page.articles) == 6
    for answer, shown in zip(answers, page.articles, strict=True):
        assert len(shown) == 6
        for arrival, token in zip(answer["arrivals"], shown, strict=True):
            assert token.seconds == pytest.approx(arrival["seconds"], abs=5e-5)
            assert (token.text, token.is_draft) == (arrival["text"], arrival["is_draft"])
    for one in record["questions"]:
        plain, other = ["".join(a["text"] for a in r["arrivals"]) for r in one["answers"]]
        assert one["is_same_text"] and plain == other
        assert one["question"] in page.words
    assert any(token.is_draft for shown in page.articles[1::2] for token in shown)
    assert record["machine"] in page.words and record["command"] in page.words


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--replay", "x.html", "--out", "y"], 2, "leave out --out"),
        (["--replay", "x.html", "--compare", "auto", "--compare", "chain:2"], 2, "one page"),
        (["--replay", "no/such/x.html"], 2, "there is no folder no/such"),
        (["--replay", "x.html", "--compare", "mlx-lm"], 1, "mlx-lm has none that drafts here"),
    ],
)
def test_what_no_page_can_be_made_of_is_refused(
    demo: Any,
    args: list[str],
    status: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlx_eagle.loading.load", lambda *args, **options: demo)
    assert run(["bench", *args]) == status
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
