"""`mlx-eagle convert` and `inspect` of multi-token prediction layers."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

import mtp_files
from command_line import run_here

MARKS = ("think_start", "think_end", "tool_call_start", "tool_call_end")


def tokenizer(folder: Path, eos: Any) -> Any:
    """A tokenizer of few words, of which no answer thinks."""
    none = {f"{name}_tokens": None for name in MARKS}
    words = {
        "eos_token_ids": {2},
        "all_special_ids": [],
        "encode": lambda text: [9, 9, 70, 5, 5, 5],
    }
    return SimpleNamespace(**words, **none)


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A layer as it is copied for MLX; its original is beside it."""
    monkeypatch.setenv("MLX_EAGLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("mlx_eagle.training.reduced_output.read_tokenizer", tokenizer)
    layer = mtp_files.random_layer("qwen3_5")
    mtp_files.save_original(tmp_path / "original", "qwen3_5", layer)
    return mtp_files.save_standalone(tmp_path / "copy", "qwen3_5", mtp_files.with_ones(layer))


def test_a_layer_is_converted_compared_and_described(copy: Path, tmp_path: Path) -> None:
    original, out = tmp_path / "original", tmp_path / "head"
    command = ["convert", str(copy), "--target", str(original), "--head-bits", "8"]
    done = run_here(*command, "--original", str(original), "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        f"{out}: multi-token prediction layer for original, 8-bit, taps 3, "
        "drafts from 128 of 128 tokens\n"
    )
    described = json.loads(run_here("inspect", str(copy), "--json").stdout)
    assert described["convertible"] and described["widths"]["hidden"] == mtp_files.H
    described = json.loads(run_here("inspect", str(out), "--json").stdout)
    assert described["block"] == "plain" and described["norms_summed"] == []
    done = run_here(*command, "--out", str(tmp_path / "other"))
    assert "in doubt: norms_summed" in done.stdout and "mlx-eagle doctor" in done.stdout
    done = run_here("convert", str(original), "--target", str(original), "--out", str(out))
    assert "its multi-token prediction layer is mtp:FOLDER" in done.stderr


def test_the_most_frequent_tokens_are_drafted_from(copy: Path, tmp_path: Path) -> None:
    original, out, text = tmp_path / "original", tmp_path / "head", tmp_path / "text.txt"
    text.write_text("words")
    command = ["convert", f"mtp:{original}", "--target", str(original), "--out", str(out)]
    done = run_here(*command, "--draft-vocab", "3", "--draft-texts", str(text))
    assert done.returncode == 0 and "drafts from 3 of 128 tokens" in done.stdout
    table = mx.load(str(out / "model.safetensors"))["draft_to_target"]
    assert table.tolist() == [2, 5, 9]
    config = json.loads((out / "config.json").read_text())
    assert config["origins"]["draft_vocab_size"] == "the most frequent tokens of text.txt"
    done = run_here("export", str(out), "--layout", "specforge", "--out", str(tmp_path / "x"))
    assert done.returncode == 1 and "prediction layer, for which there is no" in done.stderr


def test_texts_to_count_in_are_for_a_draft_vocabulary(copy: Path, tmp_path: Path) -> None:
    original = str(tmp_path / "original")
    options = ["--target", original, "--out", str(tmp_path / "head"), "--draft-texts", __file__]
    done = run_here("convert", f"mtp:{original}", *options)
    assert done.returncode == 2 and "--draft-texts is for --draft-vocab" in done.stderr
