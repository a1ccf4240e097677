"""`mlx-eagle export`: what was written in a line, or one error; usage errors before any work."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from click.testing import CliRunner, Result

from mlx_eagle.cli.export import command
from mlx_eagle.convert.heads import convert_head
from mlx_eagle.convert.publisher_layouts import LAYOUTS
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.heads.load import load_head
from own_heads import PLAIN, H, V, write_head, write_target


def run(*arguments: object) -> Result:
    """Run the command as the group does; an EagleError leaves as itself."""
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if isinstance(result.exception, EagleError):
        raise result.exception
    return result


def test_a_head_is_written_and_summed_up_in_one_line(tmp_path: Path) -> None:
    head, out = write_head(tmp_path / "head", PLAIN), tmp_path / "out"
    result = run(head, "--layout", "specforge", "--out", out)
    assert result.exit_code == 0
    assert result.stdout == (
        f"{out}: EAGLE-3 head in the layout of specforge, for SGLang, 15 tensors, bfloat16\n"
    )
    convert_head(out, write_target(tmp_path / "target"), tmp_path / "back", bits=None)
    assert load_head(tmp_path / "back").config == PLAIN


def test_a_speculators_head_without_an_embedding_says_who_needs_one(tmp_path: Path) -> None:
    head, target = write_head(tmp_path / "head", PLAIN), write_target(tmp_path / "target")
    options = ("--layout", "speculators", "--verifier", "owner/name")
    result = run(head, *options, "--out", tmp_path / "without")
    assert "15 tensors, bfloat16\n  without embed_tokens: vLLM takes" in result.stdout
    embedding = {"model.embed_tokens.weight": mx.ones((V, H))}
    mx.save_safetensors(str(target / "model.safetensors"), embedding)
    result = run(head, *options, "--target", target, "--out", tmp_path / "with")
    assert result.stdout.endswith("for vLLM, speculators, mlx-vlm, 16 tensors, bfloat16\n")


def test_the_trained_pairs_head_is_published_again_as_it_was(
    fixtures: Path, tmp_path: Path
) -> None:
    source, target = fixtures / "pydoc-eagle3", fixtures / "pydoc-llama"
    convert_head(source, target, tmp_path / "head", bits=None)
    assert run(tmp_path / "head", "--layout", "safeailab", "--out", tmp_path / "out").exit_code == 0
    convert_head(tmp_path / "out", target, tmp_path / "back", bits=None)
    files = [tmp_path / name / "model.safetensors" for name in ("head", "back")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_quantized_head_is_refused(tmp_path: Path) -> None:
    demo = Path(load_head.__code__.co_filename).parents[1] / "demo" / "head"
    with pytest.raises(CheckpointError, match="head is quantized, and no layout holds"):
        run(demo, "--layout", "safeailab", "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["head", "--out", "o"], "Missing option '--layout'"),
        (["head", "--layout", "specforge"], "Missing option '--out'"),
        (["head", "--layout", "gguf", "--out", "o"], "'gguf' is not one of 'safeailab', 'specf"),
        (
            ["head", "--layout", "specforge", "--out", "o", "--verifier", "a/b"],
            "--verifier is for the layout speculators, not specforge",
        ),
    ],
)
def test_usage_errors(arguments: list[Any], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_help_says_who_reads_each_layout() -> None:
    words = " ".join(run("--help").stdout.split())
    assert all(f"{layout} for {readers}" in words for layout, readers in LAYOUTS.items())
