"""What is benched: built-in prompts, files of users, the public data sets in their own layouts."""

import csv
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlx_eagle.bench.datasets import DATASETS, read_dataset, read_datasets
from mlx_eagle.bench.prompts import (
    BenchPrompt,
    ask,
    builtin_prompts,
    read_prompts,
    spread,
    with_later_turns,
)
from mlx_eagle.cli import bench_options
from mlx_eagle.errors import EagleError, HubError


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_built_in_prompts_have_four_categories_of_five() -> None:
    prompts = builtin_prompts(demo=False)
    counts = {p.category: 0 for p in prompts}
    for prompt in prompts:
        counts[prompt.category] += 1
    assert counts == {"chat": 5, "code": 5, "reasoning": 5, "summary": 5}


def test_prompts_for_the_demo_pair_are_none_of_those_that_tests_hold_out(
    prompts: list[str],
) -> None:
    ours = [prompt.text for prompt in builtin_prompts(demo=True)]
    assert len(ours) == 15
    assert not set(ours) & set(prompts)


def test_json_lines_give_prompts_messages_and_all_of_several_turns(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "c?"}]
    rows = [
        {"prompt": "a?"},
        {"turns": ["b?", "and then?"], "category": "math"},
        {"messages": talk, "category": "chat"},
    ]
    assert read_prompts(write_lines(tmp_path / "p.jsonl", *rows)) == [
        ask("prompts", "a?"),
        ask("math", "b?", "and then?"),
        BenchPrompt("chat", talk),
    ]


def test_a_plain_file_is_one_prompt_per_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\n\n  two \n")
    assert [p.text for p in read_prompts(tmp_path / "p.txt")] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "line 2: not JSON"),
        ("p.jsonl", b"[1]\n", "line 1: expected an object, found list"),
        ("p.jsonl", b"", "holds no rows"),
        ("p.jsonl", b'{"question": "a"}', "row 1: expected a text as prompt.*found question"),
        ("p.jsonl", b'{"turns": []}', "row 1: expected a text as prompt"),
        ("p.jsonl", b'{"turns": ["a", 3]}', "turns, all of them texts; found turns"),
        ("p.jsonl", b'{"turns": ["a", " "]}', "turns, all of them texts; found turns"),
        ("p.jsonl", b'{"prompt": "a", "category": 3}', "row 1: category is 3"),
        ("p.jsonl", b'{"messages": [{"role": "user"}]}', "lacks a role or a content"),
        ("p.jsonl", b'{"messages": "hello"}', "expected a list of messages"),
        ("p.jsonl", b"\xff\xfe", "not UTF-8"),
        ("p.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("p.json", b'[{"prompt": "a"}, 3]', "row 2: expected an object, found int"),
        ("p.json", b"[{]", "is not JSON"),
        ("p.jsonl.gz", b"no gzip", "cannot be read"),
        ("p.jsonl.gz", gzip.compress(b'{"prompt": "a"}', mtime=0)[:-9], "cannot be read"),
        ("p.txt", b"\n \n", "holds no prompts"),
    ],
)
def test_a_damaged_file_is_named_with_what_was_found(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EagleError, match=message) as caught:
        read_prompts(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(EagleError, match="No such file"):
        read_prompts(tmp_path / "none.jsonl")


def test_a_limit_takes_prompts_of_every_category_spread_evenly() -> None:
    prompts = [ask("a", str(i)) for i in range(10)] + [ask("b", "x")]
    assert [p.text for p in spread(prompts, 3)] == ["0", "3", "6", "x"]
    assert spread(prompts, None) == prompts


def test_every_turn_is_a_prompt_of_its_own_after_the_one_that_it_follows() -> None:
    prompts = with_later_turns([ask("a", "x"), ask("b", "1", "2", "3"), ask("c", "y", "z")])
    assert [(p.category, p.text, p.follows, p.later) for p in prompts] == [
        ("a", "x", None, ()),
        ("b", "1", None, ()),
        ("b", "2", 1, ()),
        ("b", "3", 2, ()),
        ("c", "y", None, ()),
        ("c", "z", 4, ()),
    ]


ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "humaneval": (
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f"},
        "Complete this Python function:\n\ndef f():\n",
    ),
    "gsm8k": ({"question": "How many?", "answer": "3\n#### 3"}, "How many?"),
    "alpaca": ({"instruction": "Sum up.", "input": "1 2", "output": "3"}, "Sum up.\n\n1 2"),
    "cnn-dm": (
        {"id": "1", "article": "News.\nMore.", "highlights": "n"},
        "Summarize this article:\n\nNews.\nMore.",
    ),
    "nq": ({"question": "who wrote it", "answer": ["she"]}, "who wrote it"),
}


def write_published(folder: Path, name: str, file: str) -> Path:
    """Write one row as its publisher lays it out, in the format that the file's name says."""
    row, path = ROWS[name][0], folder / file
    if file.endswith(".csv"):
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(row))
            writer.writeheader()
            writer.writerow(row)
    elif file.endswith(".json"):
        path.write_text(json.dumps([row]))
    else:
        data = json.dumps(row).encode() + b"\n"
        path.write_bytes(gzip.compress(data) if file.endswith(".gz") else data)
    return path


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name, d in DATASETS.items() for file in d.names]
)
def test_published_layouts_are_read_from_a_file_and_from_its_folder(
    tmp_path: Path, name: str, file: str
) -> None:
    path = write_published(tmp_path, name, file)
    wanted = [ask(name, ROWS[name][1])._replace(data_set=name)]
    assert read_dataset(name, path) == read_dataset(name, tmp_path) == wanted


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_is_also_read_in_the_layout_of_mt_bench(tmp_path: Path, name: str) -> None:
    write_lines(tmp_path / "question.jsonl", {"question_id": 1, "turns": ["Why?"]})
    assert read_dataset(name, tmp_path) == [ask(name, "Why?")._replace(data_set=name)]


def test_the_hubs_copy_of_mt_bench_names_its_turns_prompt(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "q.jsonl", {"prompt": ["A?", "B?"], "category": "stem"})
    (prompt,) = read_dataset("mt-bench", path)
    assert (prompt.text, prompt.later) == ("A?", ("B?",))


def test_categories_are_told_apart_where_a_set_has_several_and_named_after_it(
    tmp_path: Path,
) -> None:
    rows = [{"turns": ["A?"], "category": "math"}, {"turns": ["B?"], "category": "stem"}]
    write_lines(tmp_path / "mt_bench.jsonl", *rows)
    write_lines(tmp_path / "gsm8k.jsonl", *(row | {"category": "math"} for row in rows))
    write_lines(tmp_path / "alpaca.jsonl", *(row | {"category": ""} for row in rows))
    found = [(p.data_set, p.category) for p in read_datasets((), tmp_path)]
    assert found == [
        ("mt-bench", "mt-bench: math"),
        ("mt-bench", "mt-bench: stem"),
        *[("gsm8k", "gsm8k")] * 2,
        *[("alpaca", "alpaca")] * 2,
    ]


def test_several_sets_are_found_in_a_folder_in_the_layouts_of_the_papers(tmp_path: Path) -> None:
    """One has its file, another its folder; a third is not wanted."""
    for name in ("sum", "gsm8k"):
        write_lines(tmp_path / f"{name}.jsonl", {"turns": [f"{name}?"]})
    (tmp_path / "qa").mkdir()
    write_lines(tmp_path / "qa" / "question.jsonl", {"turns": ["qa?"]})
    found = read_datasets(("nq", "cnn-dm"), tmp_path)
    assert [(p.data_set, p.text) for p in found] == [("nq", "qa?"), ("cnn-dm", "sum?")]
    assert [p.data_set for p in read_datasets((), tmp_path)] == ["gsm8k", "cnn-dm", "nq"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "holds no data set: expected a file like mt_bench.jsonl.*found question.jsonl"),
        (("gsm8k", "nq"), r"no gsm8k file: expected gsm8k\.jsonl or gsm8k/question\.jsonl or"),
    ],
)
def test_a_file_that_could_be_any_set_is_taken_for_none_of_several(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    path = write_lines(tmp_path / "question.jsonl", {"turns": ["Why?"]})
    with pytest.raises(EagleError, match=message) as caught:
        read_datasets(names, tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(EagleError, match="is not a folder, and data sets are files"):
        read_datasets(("gsm8k", "nq"), path)


def test_another_layout_is_refused_with_what_was_found_and_expected(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "test.jsonl", {"q": "How many?", "a": "3"})
    with pytest.raises(EagleError, match="row 1: expected question.*found q, a"):
        read_dataset("gsm8k", path)


def test_parquet_is_refused_by_name_with_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "test-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(EagleError, match=r"expected \.json, .*found \.parquet"):
        read_dataset("gsm8k", tmp_path / "test-00000.parquet")
    with pytest.raises(EagleError, match=r"or test\.jsonl or .*found test-00000\.parquet"):
        read_dataset("gsm8k", tmp_path)


class Questions(ThreadingHTTPServer):
    """The papers' questions on loopback; `asked` are the paths that were fetched."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.asked, self.extra = folder, [], b""
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: Questions

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        name = self.path.split("/")[-2]
        data = (self.server.folder / f"{name}.jsonl").read_bytes() + self.server.extra
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def papers(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Questions]:
    server = Questions(fixtures / "bench")
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "mlx_eagle.bench.datasets.SOURCE", f"http://127.0.0.1:{server.server_port}/data"
    )
    yield server
    server.shutdown()
    server.server_close()


def test_c10_without_a_path_it_is_the_questions_of_the_papers_with_their_checksums(
    papers: Questions,
) -> None:
    for name, dataset in DATASETS.items():
        prompts = read_dataset(name)
        assert len(prompts) in (79, 80)
        assert read_dataset(name) == prompts
        assert papers.asked.pop() == f"/data/{dataset.folder}/question.jsonl"
        assert papers.asked == [], "what was fetched is kept"


def test_c10_another_file_in_its_place_is_refused_and_not_kept(
    papers: Questions, tmp_path: Path
) -> None:
    papers.extra = b"\n"
    with pytest.raises(HubError, match=r"gsm8k cannot be .*SHA-256 is .*expected a55920b2f2aa"):
        read_dataset("gsm8k")
    assert not list(tmp_path.rglob("*.jsonl"))
    papers.extra = b""
    wanted = read_dataset("gsm8k")
    (kept,) = tmp_path.rglob("*.jsonl")
    kept.write_text("damaged")
    assert read_dataset("gsm8k") == wanted


def test_a_network_that_does_not_answer_is_one_error_that_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path))
    monkeypatch.setattr("mlx_eagle.bench.datasets.SOURCE", "http://127.0.0.1:9")
    with pytest.raises(HubError, match=r"gsm8k cannot be fetched.*--data PATH"):
        read_dataset("gsm8k")


def test_the_command_line_offers_every_data_set() -> None:
    assert list(DATASETS) == bench_options.DATASETS
