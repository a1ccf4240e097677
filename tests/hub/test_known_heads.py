"""The table of known heads: what it holds, and whose names it answers to."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_eagle.convert.mlx_lm_support import runnable_types
from mlx_eagle.errors import CheckpointError
from mlx_eagle.hub.known_heads import (
    RUNS,
    KnownHead,
    all_heads,
    default_head,
    known_heads,
    when_collected,
)

ROOT = Path(__file__).resolve().parents[2]
EVERY_HEAD = [head for heads in all_heads() for head in heads]


def model_folder(folder: Path, **config: object) -> Path:
    """Make a folder with a configuration."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_entry_is_a_repository_with_a_format_a_status_and_a_reason() -> None:
    assert len(EVERY_HEAD) > 60
    for head in EVERY_HEAD:
        for name in (head.repo, *head.targets):
            assert name.count("/") == 1 and name.isascii() and " " not in name, name
        assert head.status in (*RUNS, "broken", "unsupported"), head.repo
        for text in (head.format, head.reason, *head.defects):
            assert text and text.isprintable() and len(text) < 120, (head.repo, text)


def test_a_published_length_has_its_source_and_one_that_was_not_has_none() -> None:
    for head in EVERY_HEAD:
        assert (head.acceptance_length is None) == (head.acceptance_source == ""), head.repo
        assert head.acceptance_length is None or 1 < head.acceptance_length < 6


def test_no_head_is_listed_twice_and_no_target_either() -> None:
    repos = [head.repo.lower() for head in EVERY_HEAD]
    assert sorted(set(repos)) == sorted(repos)
    names = [name.lower() for heads in all_heads() for name in heads[0].targets]
    assert sorted(set(names)) == sorted(names)


def test_what_is_recommended_comes_first_and_what_fails_comes_last() -> None:
    order = ["recommended", "usable", "broken", "unsupported"]
    for heads in all_heads():
        ranks = [order.index(head.status) for head in heads]
        assert ranks == sorted(ranks), heads[0].targets
        assert ranks.count(0) <= 1, heads[0].targets


def test_the_table_says_when_it_was_collected_and_that_nobody_looked_since() -> None:
    assert when_collected() == "2026-09"
    file = Path(sys.modules["mlx_eagle"].__path__[0]) / "hub" / "known_heads.json"
    assert "was not checked again" in json.loads(file.read_text())["about"]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("qwen/qwen3-8b", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B@main", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B-MLX-4bit", "Qwen/Qwen3-8B"),
        *(
            (f"mlx-community/Qwen3-8B-{words}", "Qwen/Qwen3-8B")
            for words in (
                *("3bit", "4bit", "5bit", "6bit", "8bit", "bf16", "fp16", "mxfp4", "nvfp4"),
                *("4bit-DWQ", "4bit-DWQ-053125", "4bit-AWQ", "4bit-gs32"),
            )
        ),
        ("mlx-community/Qwen3-8B-4bit@v2", "Qwen/Qwen3-8B"),
        ("lmstudio-community/Qwen3-8B-MLX-8bit", "Qwen/Qwen3-8B"),
        ("mlx-community/Qwen3-30B-A3B-4bit-DWQ-05082025", "Qwen/Qwen3-30B-A3B"),
        ("mlx-community/Qwen3-30B-A3B-4bit-DWQ-0508", "Qwen/Qwen3-30B-A3B"),
        ("mlx-community/Qwen3-30B-A3B-4bit-DWQ-v2", "Qwen/Qwen3-30B-A3B"),
        (
            "mlx-community/Qwen3-30B-A3B-Instruct-2507-4bit-DWQ",
            "Qwen/Qwen3-30B-A3B-Instruct-2507",
        ),
        ("mlx-community/gpt-oss-20b-MXFP4-Q8", "openai/gpt-oss-20b"),
        ("mlx-community/gemma-4-31b-it-4bit", "google/gemma-4-31B-it"),
        (
            "mlx-community/Meta-Llama-3.1-8B-Instruct-4bit",
            "meta-llama/Llama-3.1-8B-Instruct",
        ),
        ("mlx-community/Llama-3.1-8B-Instruct-4bit", "meta-llama/Llama-3.1-8B-Instruct"),
    ],
)
def test_a_copy_in_another_precision_has_the_heads_of_its_target(name: str, target: str) -> None:
    heads = known_heads(name)
    assert heads
    assert heads[0].targets[0] == target


@pytest.mark.parametrize(
    "name",
    [
        "mlx-community/Qwen3-8B-Base-4bit",
        "mlx-community/Qwen3-8B-Base",
        "mlx-community/Qwen3-4B-Instruct-2507-4bit",
        "mlx-community/Qwen3-4B-Thinking-2507-bf16",
        "mlx-community/Qwen3-4B-2507-4bit",
        "mlx-community/Qwen3-4B-4bit-DWQ-2507",
        "mlx-community/Qwen3-30B-A3B-Base-4bit",
        "mlx-community/Meta-Llama-3.1-8B-4bit",
        "meta-llama/Llama-3.1-8B",
        "mlx-community/Qwen3-8B-abliterated-4bit",
        "mlx-community/Qwen3-0.6B-4bit",
        "mlx-community/Qwen3-8B-4bit-LoRA",
        "mlx-community/Qwen3-8B4bit",
        "mlx-community/4bit",
        "somebody/Qwen3-8B-4bit",
        "somebody/Qwen3-8B",
        "Qwen3-8B",
        "",
        "-4bit",
        "mlx-community/",
        "/Qwen3-8B",
    ],
)
def test_another_variant_or_a_stranger_s_model_of_that_name_has_no_known_head(name: str) -> None:
    assert known_heads(name) == []
    assert default_head(name) is None


def test_variants_with_heads_of_their_own_are_told_apart() -> None:
    stem = "mlx-community/Qwen3-30B-A3B"
    names = [f"{stem}{variant}-4bit" for variant in ("", "-Instruct-2507", "-Thinking-2507")]
    heads = [default_head(name) for name in names]
    assert len({head.repo for head in heads if head}) == 3


def test_a_head_that_fails_is_listed_and_never_chosen() -> None:
    repo = "nvidia/Llama-3.3-70B-Instruct-Eagle3"
    heads = {head.repo: head for head in known_heads("mlx-community/Llama-3.3-70B-Instruct-4bit")}
    assert heads[repo].status == "broken"
    assert default_head("meta-llama/Llama-3.3-70B-Instruct") == next(iter(heads.values()))
    assert known_heads("google/gemma-4-12B-it")[0].status == "unsupported"
    assert default_head("google/gemma-4-12B-it") is None


def test_a_folder_of_the_hub_s_cache_is_known_by_the_name_of_its_repository(
    tmp_path: Path,
) -> None:
    cached = tmp_path / "models--mlx-community--Qwen3-8B-4bit" / "snapshots" / ("a" * 40)
    heads = known_heads(model_folder(cached, _name_or_path="Qwen/Qwen3-14B"))
    assert heads == known_heads("Qwen/Qwen3-8B") != []
    other = tmp_path / "models--somebody--Finetune" / "snapshots" / ("a" * 40)
    assert known_heads(model_folder(other, _name_or_path="Qwen/Qwen3-14B")) == []


def test_another_folder_is_known_by_what_its_configuration_says(tmp_path: Path) -> None:
    heads = known_heads(model_folder(tmp_path / "a", _name_or_path="Qwen/Qwen3-14B"))
    assert heads == known_heads("Qwen/Qwen3-14B") != []


@pytest.mark.parametrize("value", [None, "", "/data/Qwen3-14B", "Qwen3-14B", 7, ["Qwen/Qwen3-14B"]])
def test_a_folder_without_a_known_name_has_no_known_head(tmp_path: Path, value: object) -> None:
    folder = model_folder(tmp_path / "Qwen3-14B-4bit", _name_or_path=value)
    assert known_heads(folder) == known_heads(str(folder)) == []
    (folder / "config.json").unlink()
    assert known_heads(folder) == []


def test_a_configuration_that_is_not_json_is_an_error_that_names_it(tmp_path: Path) -> None:
    (model_folder(tmp_path / "a") / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"a/config\.json is not readable JSON"):
        known_heads(tmp_path / "a")


def test_a_look_at_the_table_loads_neither_mlx_nor_the_hub_s_library() -> None:
    code = (
        "import sys; from mlx_eagle.hub.known_heads import default_head; "
        "default_head('Qwen/Qwen3-8B'); "
        "print([n for n in ('mlx', 'numpy', 'huggingface_hub') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_entry_carries_all_that_is_known_about_a_head() -> None:
    assert default_head("openai/gpt-oss-20b") == KnownHead(
        repo="Dogacel/specdrift-gpt-oss-20b-eagle3",
        targets=("openai/gpt-oss-20b",),
        format="EAGLE-3.1",
        status="recommended",
        reason="the longest acceptance of those that were compared",
        defects=("may have more than three taps or several layers",),
        acceptance_length=2.65,
        acceptance_source="reported in sglang#24620",
    )


def families(kind: str) -> set[str]:
    """The families of a row of the table in docs/targets.md."""
    lines = (ROOT / "docs" / "targets.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| {kind}"))
    return set(re.findall(r"[a-z0-9_]+", row.split("|")[2]))


def test_c11_no_entry_contradicts_what_targets_can_do() -> None:
    """Types are mlx-lm's; where nothing is verified no head runs, elsewhere that is no reason."""
    table = json.loads((ROOT / "mlx_eagle" / "hub" / "known_heads.json").read_text())["table"]
    runnable, refused = set(runnable_types()), families("not at all")
    recurrent = families("chains, with exact return")
    assert {"llama4", "gemma3n"} <= refused and {"qwen3_5", "qwen3_next"} <= recurrent
    for row in table:
        kind = row["model_type"]
        assert kind in runnable, row["targets"]
        for head in row["heads"]:
            runs = head["status"] in RUNS
            assert not (runs and kind in refused), head["repo"]
            assert runs or "recurrent" not in head["reason"], head["repo"]
            assert ("recurrent" in head["reason"]) == (runs and kind in recurrent), head["repo"]
