"""README and docs/: their commands and programs run, their links lead to files, no term is twice.

A block of commands or of Python either runs here, with the toy pair or by default with a smaller
one in its place, or has a comment above it that says what it needs; then its command lines are
parsed only.
"""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from hub_settings import hub_at
from mlx_eagle.calibration import planners
from mlx_eagle.cli.main import group
from mlx_eagle.cli.main import run as run_command_line
from mlx_eagle.planner.cost_model import Costs

ROOT = Path(__file__).resolve().parents[1]
MAPPED = {"convert": "mlx_eagle.convert", "cli": "mlx_eagle.cli"}
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(
    r"(?:^<!-- (?P<note>[^\n]+) -->\n)?^```(?P<kind>sh|python)\n(?P<text>.*?)^```$", re.M | re.S
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
# Why a block is not run here. The two commands that install are run by .ci/run and by
# tests/cli/chat/test_demo_chat.py.
REASONS = re.compile(
    r"demo|test|slow|needs: (download|a server|fixtures|uv or pipx|build and twine)"
)
NAMED_FILES = ("--data", "--heldout-data")  # options whose files must be there to be parsed
# Commands of other files that run elsewhere in the tests: the file that runs them.
ELSEWHERE = {"examples/": "tests/test_examples.py"}


class Block(NamedTuple):
    """A block of commands or of Python; `note` says why it is not run."""

    document: Path
    kind: str
    note: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.document.name}: {self.text.splitlines()[0][:40]}"

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command, without variables before it and comments after."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def blocks_of(document: Path) -> list[Block]:
    """Return the blocks of a document, in order."""
    found = FENCE.finditer(document.read_text())
    return [Block(document, m["kind"], m["note"] or "", m["text"]) for m in found]


BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]
RUN = [block for block in BLOCKS if block.kind == "sh" and not block.note]
NOT_RUN = [block for block in BLOCKS if block.note]
PROGRAMS = [block for block in BLOCKS if block.kind == "python" and not block.note]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder in which nothing is measured and the checkout's files are.

    Rows cost their number there, as they do here, or answers would take longer by drafting.
    """
    rows = {n: (0.01 * n,) for n in range(1, 5)}
    costs = Costs((64,), rows, (0.01,), (0.002, 0.004, 0.006), 0.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(planners, "measure", lambda *_: costs)
    (tmp_path / "mlx_eagle").symlink_to(ROOT / "mlx_eagle")
    with hub_at("http://127.0.0.1:9", tmp_path / "hub", HF_HUB_OFFLINE="1"):
        yield tmp_path


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.name)
def test_a_block_that_is_not_run_says_why_and_its_commands_exist(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert REASONS.fullmatch(block.note), block.note
    monkeypatch.chdir(tmp_path)
    for words in block.commands():
        for flag, value in pairwise(words):
            if flag in NAMED_FILES:
                Path(value).parent.mkdir(parents=True, exist_ok=True)
                Path(value).touch()
        if words[0] == "mlx-eagle":
            parse(words[1:])
        elif words[0] == "python" and words[1] != "-m":
            check_script(words[1], words[2:])


def check_script(name: str, options: list[str]) -> None:
    """Assert that a script has these options, and `mlx-eagle` those that follow --."""
    script, passed_on = (ROOT / name).read_text(), []
    if "--" in options:
        at = options.index("--")
        options, passed_on = options[:at], options[at + 1 :]
    flags = [word for word in options if word.startswith("--")]
    assert all(f'"{flag}"' in script for flag in flags), flags
    if passed_on and "given to `mlx-eagle train`" in script:
        Path("texts.jsonl").touch()
        parse(["train", "--model", "m", "--data", "texts.jsonl", "--out", "o", *passed_on])
    elif passed_on:
        assert "arguments of `mlx-eagle chat`" in script
        parse(["chat", *passed_on])


def parse(arguments: list[str]) -> None:
    """Let click read a command line without running it."""
    context = click.Context(group, info_name="mlx-eagle")
    name, command, rest = group.resolve_command(context, arguments)
    assert command is not None
    with command.make_context(name, rest, parent=context):
        pass


@pytest.mark.usefixtures("small_toy_pair")
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_commands_run(block: Block, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in block.commands():
        if words[0] == "mlx-eagle":
            status = run_command_line(words[1:])
            assert status == 0, capsys.readouterr().err
            continue
        assert words[0] == "python", words
        runner = next(test for start, test in ELSEWHERE.items() if words[1].startswith(start))
        assert Path(words[1]).name in (ROOT / runner).read_text()


@pytest.mark.usefixtures("small_toy_pair")
@pytest.mark.parametrize(
    "document",
    dict.fromkeys(block.document for block in PROGRAMS),
    ids=lambda document: document.name,
)
def test_programs_of_a_document_run_one_after_the_other(document: Path, workplace: Path) -> None:
    names: dict[str, object] = {}
    for block in PROGRAMS:
        if block.document == document:
            exec(compile(block.text, str(document), "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_to_files_and_headings(document: Path) -> None:
    for link in LINK.findall(document.read_text()):
        if link.startswith("https://"):
            continue
        file, _, heading = link.partition("#")
        target = document.parent / file if file else document
        assert target.is_file(), link
        if heading:
            assert heading in headings_of(target), link


def headings_of(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as hosts make them."""
    titles = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_files_that_are_named_exist(document: Path) -> None:
    tops = "mlx_eagle|convert|cli|tests|benchmarks|examples|docs"
    for name in re.findall(rf"`((?:{tops})/[\w/.*-]+)`", document.read_text()):
        assert (ROOT / name).exists(), name


def test_the_screen_of_chat_shows_the_demo_pairs_answer(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    screens = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "chat.md").read_text(), re.S)
    screen = next(screen for screen in screens if ">>> " in screen)
    question = next(line for line in screen.splitlines() if line.startswith(">>> "))
    assert run_command_line(["chat", "-m", "demo", "-p", question.removeprefix(">>> ")]) == 0
    assert capsys.readouterr().out.strip() in screen


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_block_is_of_a_kind_that_is_looked_at(document: Path) -> None:
    fences = re.findall(r"^```(.*)$", document.read_text(), re.M)
    assert set(fences[::2]) <= {"sh", "python", "text"}
    assert set(fences[1::2]) <= {""}


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert [block.note for block in blocks_of(ROOT / "README.md")][:2] == ["demo", "test"]


def test_every_document_is_reached_from_the_readme() -> None:
    links = set(LINK.findall((ROOT / "README.md").read_text()))
    names = {link.partition("#")[0] for link in links}
    assert {str(document.relative_to(ROOT)) for document in DOCUMENTS[1:]} <= names


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_no_document_holds_the_marks_of_a_merge(document: Path) -> None:
    assert not re.search(r"^(<{7}|={7}|>{7})( |$)", document.read_text(), re.M)


def test_the_glossary_defines_every_term_once() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text()
    terms = [row.split("|")[1].strip() for row in text.splitlines() if row.startswith("| ")][1:]
    words = [word.strip(" `").lower() for term in terms for word in term.split(",")]
    assert len(words) > 40
    assert sorted(set(words)) == sorted(words)


def test_each_of_the_ten_tasks_touches_three_files_at_most() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text().partition("ten tasks")[2]
    tasks = re.findall(r"^\d+\. (.+?)(?=^\d+\. |\n\n)", text, re.M | re.S)
    assert len(tasks) == 10
    for task in tasks:
        named = re.findall(
            r"`\w+/[\w/]+\.py`|`pyproject.toml`|A module|own module|the module", task
        )
        assert 1 <= len(named) <= 3, task


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for top, package in {"mlx_eagle": "mlx_eagle", **MAPPED}.items():
        for file in (ROOT / top).rglob("__init__.py"):
            parts = file.parent.relative_to(ROOT / top).parts
            if parts or top != "mlx_eagle":
                assert f"`{'.'.join((package, *parts))}`" in text
    for module in (ROOT / "mlx_eagle").glob("[a-z]*.py"):
        assert module.name in text
