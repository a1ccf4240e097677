"""Public data sets that speculative decoding is measured on.

Without a path it is the 80 questions of each that the EAGLE papers were measured on, as their
authors publish them: one commit, and one checksum for each file, so that a figure is comparable
with another one. A local file or folder may hold them, or the whole data set in its publisher's own
layout. All turns are asked; the answers in the files are not used.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import get_session

from mlx_eagle.bench.prompts import BenchPrompt, ask, to_prompt
from mlx_eagle.bench.table_files import READABLE, Row, read_rows
from mlx_eagle.errors import EagleError, HubError
from mlx_eagle.files.atomic import new_file
from mlx_eagle.files.folders import cache_folder
from mlx_eagle.files.quoting import printable
from mlx_eagle.hub.download import NetworkError

SOURCE = (
    "https://raw.githubusercontent.com/SafeAILab/EAGLE/"
    "cb7e0841fe0c206c6ed74a197ad5e2a1f13f5a2b/eagle/data"
)
QUESTIONS = "question.jsonl"  # what the papers' authors call every one of their files
TIMEOUT = 30  # seconds


class Dataset(NamedTuple):
    """Where a data set is and how a row becomes a prompt.

    Attributes:
        category: of its prompts, where the rows do not name several.
        folder: of the questions, below SOURCE.
        sha256: of the file with the questions.
        names: what its file is called where it is published, for folders.
        fields: what a row has to hold.
        question: makes the text of the prompt.
    """

    category: str
    folder: str
    sha256: str
    names: tuple[str, ...]
    fields: tuple[str, ...]
    question: Callable[[Row], str]

    @property
    def published(self) -> tuple[str, str]:
        """The papers' questions, as a file of their own and as the papers' authors keep them."""
        return f"{self.folder}.jsonl", f"{self.folder}/{QUESTIONS}"


def _instruct(row: Row) -> str:
    """Return Alpaca's instruction, with its input below."""
    return f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]


DATASETS = {
    "mt-bench": Dataset(
        "mt-bench",
        "mt_bench",
        "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
        (),
        ("turns",),
        lambda row: row["turns"][0],
    ),
    "humaneval": Dataset(
        "humaneval",
        "humaneval",
        "ce0244e2b228339e9a11afc63a151719beede1e389fdaec7cd9751d33902180e",
        ("HumanEval.jsonl", "HumanEval.jsonl.gz"),
        ("prompt",),
        lambda row: f"Complete this Python function:\n\n{row['prompt']}",
    ),
    "gsm8k": Dataset(
        "gsm8k",
        "gsm8k",
        "a55920b2f2aac724241124c59e5b8e8168dbbeb2ab0fdbee17d5b0ab6db5ff27",
        ("test.jsonl",),
        ("question",),
        lambda row: row["question"],
    ),
    "alpaca": Dataset(
        "alpaca",
        "alpaca",
        "8ad3e5a7fc61b88d8e25edb81a52a2ce00a04494d5694c122cb11a5cc26a00df",
        ("alpaca_data.json", "alpaca_data_cleaned.json"),
        ("instruction",),
        _instruct,
    ),
    "cnn-dm": Dataset(
        "cnn-dm",
        "sum",
        "916876f0c42f938a944de96eed16e51425f29f27438cca5c9ef4737c0fedf771",
        ("test.csv", "test.jsonl"),
        ("article",),
        lambda row: f"Summarize this article:\n\n{row['article']}",
    ),
    "nq": Dataset(
        "nq",
        "qa",
        "04252e41ab00bcc03b11940b4a3766cf40ae0b76a09c4f56968ba952f0b029f3",
        ("NQ-open.dev.jsonl",),
        ("question",),
        lambda row: row["question"],
    ),
}


def read_datasets(names: Sequence[str], path: Path | None = None) -> list[BenchPrompt]:
    """Return the prompts of public data sets, one set after the other.

    Args:
        names: keys of DATASETS; none for all that are found in the folder.
        path: the folder that holds them, or the file of a single one; None fetches them.

    Raises:
        EagleError: if one cannot be had, or its rows are laid out otherwise.
    """
    if path is None or len(names) == 1:
        return [prompt for name in names for prompt in read_dataset(name, path)]
    if not path.is_dir():
        raise EagleError(f"{path} is not a folder, and data sets are files: give their folder")
    wanted = names or [n for n, d in DATASETS.items() if _existing(path, d.published)]
    if not wanted:
        raise EagleError(
            f"{path} holds no data set: expected a file like mt_bench.jsonl, or a folder like "
            f"mt_bench with its question.jsonl; found {_listing(path)}"
        )
    return [p for name in wanted for p in _read(name, _find(name, path, is_alone=False))]


def read_dataset(name: str, path: Path | None = None) -> list[BenchPrompt]:
    """Return the prompts of a public data set.

    Args:
        name: a key of DATASETS.
        path: its file, or the folder that holds it; None fetches the papers' questions, once.

    Raises:
        EagleError: if it cannot be had, or its rows are laid out otherwise.
    """
    if path is not None:
        return _read(name, _find(name, path, is_alone=True))
    return _read(name, _fetch(name, DATASETS[name]))


def _read(name: str, file: Path) -> list[BenchPrompt]:
    """Return the prompts in a file; their categories tell where they are from."""
    dataset = DATASETS[name]
    rows = list(enumerate(read_rows(file), start=1))
    prompts = [_to_prompt(row, dataset, f"{file}, row {n}") for n, row in rows]
    has_several = len({prompt.category for prompt in prompts}) > 1
    return [
        prompt._replace(
            category=f"{name}: {prompt.category}" if has_several else name, data_set=name
        )
        for prompt in prompts
    ]


def _to_prompt(row: Row, dataset: Dataset, where: str) -> BenchPrompt:
    """Return the prompt of a row in the published layout, or in MT-bench's."""
    if "turns" in row or isinstance(row.get("prompt"), list):
        prompt = to_prompt(row, where)
        return prompt if row.get("category") else prompt._replace(category=dataset.category)
    missing = [f for f in dataset.fields if not isinstance(row.get(f), str) or not row[f].strip()]
    if missing:
        raise EagleError(
            f"{where}: expected {', '.join(dataset.fields)} as in the published {dataset.category} "
            f"files, or turns; found {', '.join(map(str, row))}"
        )
    return ask(dataset.category, dataset.question(row))


def _find(name: str, path: Path, *, is_alone: bool) -> Path:
    """Return the file of a data set: `path` itself, or the one in the folder `path`.

    Args:
        name: of the data set.
        path: a file or a folder.
        is_alone: no other data set is looked for there, so any name of its file will do.
    """
    if not path.is_dir():
        return path
    dataset = DATASETS[name]
    wanted = (*dataset.published, *dataset.names, *([QUESTIONS] if is_alone else []))
    if found := _existing(path, wanted):
        return found[0]
    raise EagleError(
        f"{path} holds no {name} file: expected {' or '.join(wanted)}, found {_listing(path)}; "
        f"give the file itself ({', '.join(READABLE)})"
    )


def _existing(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the files of these names that are there."""
    return [folder / name for name in names if (folder / name).is_file()]


def _listing(folder: Path) -> str:
    """Return what a folder holds, in a few words."""
    found = sorted(printable(entry.name) for entry in folder.iterdir())[:8]
    return ", ".join(found) or "nothing"


def _fetch(name: str, dataset: Dataset) -> Path:
    """Return the questions' file, fetched once and kept in the cache folder.

    Raises:
        HubError: if it cannot be had, or is another file.
    """
    file = cache_folder() / "datasets" / f"{name}-{dataset.sha256[:12]}.jsonl"
    url = f"{SOURCE}/{dataset.folder}/{QUESTIONS}"
    try:
        if not file.is_file() or _sha256(file.read_bytes()) != dataset.sha256:
            _download(url, dataset.sha256, file)
    except (NetworkError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise HubError(
            f"{name} cannot be fetched ({url}): {reason}; download that file, or "
            "what its publisher has, and give it with --data PATH"
        ) from error
    return file


def _download(url: str, sha256: str, file: Path) -> None:
    """Write what a URL holds to a file, if it is what is expected there; ValueError else."""
    answer = get_session().get(url, timeout=TIMEOUT, follow_redirects=True)
    answer.raise_for_status()
    if (found := _sha256(answer.content)) != sha256:
        raise ValueError(f"its SHA-256 is {found[:12]}, expected {sha256[:12]}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with new_file(file) as partial:
        partial.write_bytes(answer.content)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
