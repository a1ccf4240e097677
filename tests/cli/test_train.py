"""`mlx-eagle train`: from texts to a head that drafts, what it says, and what it refuses."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
import pytest

import mlx_eagle
from command_line import Finished, run_here
from mlx_eagle.training.run.checkpoint import newest_checkpoint
from mlx_eagle.tree_shape import TreeShape
from training_files import DEMO, write_adapter, write_conversations, write_tiny_target

OPTIONS = (
    *("--length", "32", "--steps", "2", "--max-updates", "3", "--draft-vocab", "300"),
    *("--heldout", "0.2", "--measure-every", "2", "--head-bits", "none"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a target and conversations."""
    folder = tmp_path_factory.mktemp("train")
    write_tiny_target(folder / "target")
    write_conversations(folder / "texts.jsonl", 16)
    write_conversations(folder / "questions.jsonl", 6, answered=False)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quickly() -> Iterator[None]:
    """Drawing curves, and compiling a step, take longer than a few updates."""
    mx.disable_compile()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        yield
    mx.enable_compile()


def train(place: Path, out: Path, *more: object, data: str = "texts.jsonl") -> Finished:
    """Run the command with few and short updates."""
    files = ("--model", place / "target", "--data", place / data, "--out", out)
    return run_here("train", *map(str, files), *OPTIONS, *map(str, more))


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """The folder of a training that has come to its end."""
    done = train(place, place / "trained")
    assert done.returncode == 0, done.stderr
    (place / "said.txt").write_text(done.stderr)
    return place / "trained"


def test_a_head_is_trained_from_texts_and_drafts_what_the_target_says(
    place: Path, trained: Path
) -> None:
    engine = mlx_eagle.load(place / "target", trained / "head", calibrate=False)
    ask = partial(engine.generate, "What does os do?", max_tokens=12)
    plain, drafted = ask(speculate=False), ask(tree=TreeShape.complete(2, 2, 4))
    assert drafted.stats is not None and drafted.stats.drafted > 0
    assert drafted.text == plain.text


def test_the_screen_tells_what_is_trained_then_how_well_and_what_to_do_with_it(
    place: Path, trained: Path
) -> None:
    said = (place / "said.txt").read_text()
    for line in (
        r"  head +EAGLE-3 head, 0\.0\d million parameters",
        r"  training +3 updates of 4 rows of 32 tokens, which is \d\.\d times all texts",
        r"  memory +.* to .* \(estimated\) and the target's .*, of .*",
        r"features of 11 texts take .* kB on disk, in .*",
        r"update 1 of 3: loss .*, gradient norm .*, rate .*, .* tokens/s",
        r"n-alpha   \S+ \S+",
        r"held out: \S+ \S+, length \S+, at update 2, the best so far",
        r"  n-alpha +\S+ \S+ on held-out texts, length \S+",
        r"  counted are +all positions whose token is trained, whether or not the draft vocabulary "
        r"has the target's",
        r"  try it +mlx-eagle chat --model \S+ --head \S+/trained/head",
        r"  export +mlx-eagle export \S+/trained/head-full --layout speculators --out DIR",
        r"curves of loss and n-alpha need matplotlib: pip install .*",
    ):
        assert re.search(f"^{line}$", said, re.M), f"{line}\n{said}"


def test_the_commands_that_it_ends_with_are_right(
    place: Path, trained: Path, tmp_path: Path
) -> None:
    said = (place / "said.txt").read_text()
    [export] = re.findall(r"^  export +mlx-eagle (export .*) --out DIR$", said, re.M)
    assert run_here(*export.split(), "--out", str(tmp_path / "published")).returncode == 0
    adapter = write_adapter(tmp_path / "my adapter", 0.1)
    done = train(place, tmp_path / "out", "--adapter-path", adapter, "--max-updates", 1)
    assert f" --adapter-path '{adapter}' --head " in done.stderr


def test_a_training_that_is_finished_is_not_done_again(place: Path, trained: Path) -> None:
    (trained / "features").rename(trained / "elsewhere")
    again = train(place, trained)
    (trained / "elsewhere").rename(trained / "features")
    assert again.returncode == 0
    assert "had come to its end before: nothing was done" in again.stderr
    assert "on held-out texts" in again.stderr
    assert again.stdout.startswith("the head is in ")


def test_ctrl_c_saves_and_the_same_command_goes_on_to_the_same_weights(
    place: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_eagle.training.run import loop

    def report(self: Any, *figures: Any) -> None:
        reported(self, *figures)
        if self.update == 1:
            os.kill(os.getpid(), signal.SIGINT)

    reported = loop._Trainer._report
    with monkeypatch.context() as patch:
        # One update more is under way when a signal comes between two.
        patch.setattr(loop._Trainer, "_report", report)
        stopped = train(place, tmp_path / "out")
    assert stopped.returncode == 130
    assert "stopped and saved after update 2, in" in stopped.stderr
    assert not (tmp_path / "out" / "head").exists()
    done = train(place, tmp_path / "out")
    assert done.returncode == 0
    assert "going on after update 2; best so far: length" in done.stderr
    ours, theirs = (
        mx.load(str(newest_checkpoint(folder / "checkpoint") / "weights.safetensors"))
        for folder in (tmp_path / "out", trained)
    )
    assert all(mx.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_head_is_trained_further_and_only_the_best_weights_are_not_quantized(
    place: Path, trained: Path, tmp_path: Path
) -> None:
    start = ("--from", trained / "head-full", "--draft-vocab", 32000, "--max-updates", 1)
    done = train(place, tmp_path / "further", *start)
    assert done.returncode == 0
    share = r"^draft vocabulary: 300 of 4096 tokens, \S+% of what is trained on$"
    assert re.search(share, done.stderr, re.M), "it is the head's own"
    before, after = (
        mx.load(str(f / "head-full" / "model.safetensors")) for f in (trained, tmp_path / "further")
    )
    assert before.keys() == after.keys()
    assert not mx.array_equal(before["lm_head.weight"], after["lm_head.weight"])


def test_the_target_answers_questions_and_medusa_heads_learn_from_them(
    place: Path, tmp_path: Path
) -> None:
    more = ("--algorithm", "medusa", "--layers", 2, "--answer-tokens", 8, "--max-updates", 1)
    done = train(place, tmp_path / "out", *more, data="questions.jsonl")
    assert done.returncode == 0, done.stderr
    assert "answers: 4 of 4, " in done.stderr and "tokens/s" in done.stderr
    assert "the target wrote 4 answers" in done.stderr
    assert "Medusa heads, 0." in done.stderr
    assert "mlx-eagle chat" in done.stderr
    assert "mlx-eagle export" not in done.stderr, "there is no layout for them"


def test_help_imports_neither_mlx_nor_rich() -> None:
    code = (
        "import sys; from mlx_eagle.cli.main import run; run(['train', '--help']);"
        "print([name for name in ('mlx', 'rich', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.endswith("\n[]\n")
    assert re.search(r"^Training:$", result.stdout, re.M)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "texts.jsonl holds no conversation: it is empty"),
        ('{"text": \n{"text": 5}\n', "texts.jsonl:1: '{\"text\": \\n' .. is not readable JSON"),
        ('{"prompt": "a"}\n', "the data holds no answer"),
    ],
)
def test_texts_that_cannot_be_used_are_one_line_and_leave_nothing(
    place: Path, tmp_path: Path, text: str, why: str
) -> None:
    (tmp_path / "texts.jsonl").write_text(text)
    data = ("--data", tmp_path / "texts.jsonl", "--answers", "given")
    files = ("--model", place / "target", *data, "--out", tmp_path / "out")
    refused = run_here("train", *map(str, files), *OPTIONS)
    assert refused.returncode == 1
    [line] = [line for line in refused.stderr.splitlines() if line]
    assert line.startswith("error: ") and why in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--taps", "1,9"), "error: the taps are 1, 9; give boundaries from 0 to 5, ascending"),
        (("--memory", "0.002"), "error: training may take 0.0 GB besides the target"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_is_computed(
    place: Path, tmp_path: Path, options: tuple[str, ...], why: str
) -> None:
    refused = train(place, tmp_path / "out", *options)
    assert refused.returncode == 1
    assert why in refused.stderr
    assert not (tmp_path / "out").exists()


def test_another_training_is_not_mixed_into_a_folder(place: Path, trained: Path) -> None:
    refused = train(place, trained, "--step-decay", "0.9")
    assert refused.returncode == 1
    assert "holds a training with another step_decay (0.8 there, 0.9 here)" in refused.stderr


def test_options_may_change_until_an_update_is_saved(place: Path, tmp_path: Path) -> None:
    assert train(place, tmp_path / "out", "--prepare").returncode == 0
    before = json.loads((tmp_path / "out" / "options.json").read_text())
    assert train(place, tmp_path / "out", "--prepare", "--epochs", 2).returncode == 0
    after = json.loads((tmp_path / "out" / "options.json").read_text())
    assert (before["loop"]["epochs"], after["loop"]["epochs"]) == (3, 2)


def test_features_are_shared_in_a_folder_and_refused_to_another_kind_of_head(
    place: Path, tmp_path: Path
) -> None:
    shared = ("--features-in", tmp_path / "features", "--prepare")
    assert train(place, tmp_path / "first", *shared).returncode == 0
    again = train(place, tmp_path / "second", *shared, "--epochs", 2)
    assert again.returncode == 0 and "on disk" not in again.stderr, "they are there"
    refused = train(place, tmp_path / "third", *shared, "--taps", "1,2,3")
    assert refused.returncode == 1
    assert "features/train holds features of something else (boundaries" in refused.stderr


def test_a_head_that_cannot_be_trained_further_is_refused(
    place: Path, trained: Path, tmp_path: Path
) -> None:
    wide = write_tiny_target(tmp_path / "wide", hidden_size=64)
    start, out = ("--from", trained / "head-full", "--draft-vocab", 32000), tmp_path / "out"
    for more, why in (
        (("--model", wide, *start), "is a head for a target of width 32 with 4096 tokens"),
        (
            (*start, "--from", DEMO.parent / "head"),
            "is quantized, so its weights cannot be trained",
        ),
        (
            (*start, "--taps", "1,2,3", "--layers", 2, "--norms", "eagle3.1", "--draft-vocab", 9),
            "keeps what it was made with: leave out --layers, --taps, --norms, --draft-vocab",
        ),
        (
            (*start, "--window", 9, "--intermediate", 9),
            "keeps what it was made with: leave out --intermediate, --window",
        ),
        (
            (*start, "--algorithm", "medusa"),
            "is of the kind EAGLE-3 head, which --algorithm medusa does not train: leave it out",
        ),
    ):
        refused = train(place, out, *more)
        assert refused.returncode == 1
        assert why in refused.stderr.splitlines()[-1]
        assert not out.exists()


def test_a_full_disk_is_one_line_and_keeps_what_is_complete(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("mlx_eagle.training.features.store.write_shard", full)
        stopped = train(place, tmp_path / "out")
    assert stopped.returncode == 1
    assert "the disk is full. 0 of 1 shards are kept: free" in stopped.stderr.splitlines()[-1]
    with monkeypatch.context() as patch:
        patch.setattr("mlx_eagle.training.run.checkpoint._write", full)
        stopped = train(place, tmp_path / "out")
    assert stopped.returncode == 1
    assert re.fullmatch(r"error: cannot write .*: No space left.*", stopped.stderr.splitlines()[-1])
    done = train(place, tmp_path / "out")
    assert done.returncode == 0 and "features of" not in done.stderr


def test_ctrl_c_before_the_first_update_keeps_what_is_complete(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    for name in ("read_corpus", "compute"):
        with monkeypatch.context() as patch:
            patch.setattr(f"mlx_eagle.training.train_head.{name}", interrupted)
            with pytest.raises(click.Abort):  # of which `main` makes status 130
                train(place, tmp_path / "out", "--prepare")
    assert train(place, tmp_path / "out", "--prepare").returncode == 0


@pytest.mark.broad
def test_ctrl_c_ends_the_program_at_every_stage_and_the_same_command_goes_on(
    place: Path, tmp_path: Path
) -> None:
    write_conversations(tmp_path / "many.jsonl", 120, answered=False)
    out = tmp_path / "out"
    files = ("--model", place / "target", "--data", tmp_path / "many.jsonl", "--out", out)
    command = [*map(str, files), *OPTIONS, "--max-updates", "30", "--answer-tokens", "24"]
    program = "import sys; from mlx_eagle.cli.main import main; sys.argv[0] = 'mlx-eagle'; main()"
    for sign in ("options.json", "answers-train.jsonl", "features/train/index.json", "updates.csv"):
        process = subprocess.Popen(
            [sys.executable, "-c", program, "train", *command], stderr=subprocess.PIPE, text=True
        )
        while not (out / sign).exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=120)
        assert process.returncode == 130, said
        assert "the same command goes on" in said
    assert run_here("train", *command).returncode == 0
    assert (out / "head" / "config.json").exists()
