"""Targets: what mlx-lm's own converter makes of them, from safetensors and from pickles."""

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_eagle.convert.targets import TargetFacts, convert_target, read_facts
from mlx_eagle.errors import CheckpointError, EagleError

PROMPT = mx.array([[5, 99, 1023, 7, 4000, 12]])


@pytest.fixture
def source(fixtures: Path) -> Path:
    return fixtures / "pydoc-llama"


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    """A copy of the fixture target that a test may change."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in source.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def logits(folder: Path) -> mx.array:
    """Return the logits [1, L, V] float32 of PROMPT, by mlx-lm's own loader."""
    from mlx_lm import load

    model, _ = load(str(folder))
    return model(PROMPT).astype(mx.float32)


def weights(folder: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(folder / "model.safetensors")))


def set_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize("bits", [4, 8, None])
def test_target_is_what_mlx_lm_makes_of_it(source: Path, tmp_path: Path, bits: int | None) -> None:
    from mlx_lm.convert import convert

    convert_target(source, tmp_path / "ours", bits=bits, group_size=32)
    quantize = bits is not None
    convert(str(source), str(tmp_path / "theirs"), quantize=quantize, q_bits=bits, q_group_size=32)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    assert (ours / "config.json").read_text() == (theirs / "config.json").read_text()
    assert mx.array_equal(logits(ours), logits(theirs))
    if bits is None:
        assert mx.array_equal(logits(ours), logits(source))


def test_only_stderr_hears_of_the_progress(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_target(source, tmp_path / "out")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "[INFO]" in printed.err


@pytest.mark.torch
@pytest.mark.parametrize("n_shards", [1, 3])
def test_pickled_target_gives_the_same_weights(
    source: Path, copy: Path, tmp_path: Path, n_shards: int
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch writes the pickles")
    from safetensors.torch import load_file

    tensors = load_file(source / "model.safetensors")
    (copy / "model.safetensors").unlink()
    shards: list[dict[str, Any]] = [{} for _ in range(n_shards)]
    for number, (name, tensor) in enumerate(tensors.items()):
        shards[number % n_shards][name] = tensor
    if n_shards == 1:
        torch.save(shards[0], copy / "pytorch_model.bin")
    else:
        names = [f"pytorch_model-{i + 1:05}-of-{n_shards:05}.bin" for i in range(n_shards)]
        for name, shard in zip(names, shards, strict=True):
            torch.save(shard, copy / name)
        places = {k: name for name, shard in zip(names, shards, strict=True) for k in shard}
        index = json.dumps({"weight_map": places})
        (copy / "pytorch_model.bin.index.json").write_text(index)
    convert_target(copy, tmp_path / "from-bin")
    convert_target(source, tmp_path / "from-safetensors")
    ours, theirs = weights(tmp_path / "from-bin"), weights(tmp_path / "from-safetensors")
    assert set(ours) == set(theirs)
    assert all(mx.array_equal(ours[name], theirs[name]) for name in theirs)
    files = {file.name for file in (tmp_path / "from-bin").iterdir()}
    assert files == {file.name for file in (tmp_path / "from-safetensors").iterdir()}
    assert "tokenizer.json" in files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_j_9000"}, "mlx-lm has no model of the type 'gpt_j_9000'"),
        ({"model_type": "cache"}, "mlx-lm has no model of the type 'cache'"),
        ({"model_type": "../llama"}, "mlx-lm has no model of the type"),
        ({"model_type": ...}, "mlx-lm has no model of the type missing"),
        ({"model_file": "evil.py"}, "brings its own model code, which is never run"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "already quantized for MLX"),
        ({"speculators_model_type": "eagle3"}, r"is a speculators head .*name its target as well"),
        ({"hidden_size": 128}, "mlx-lm could not convert copy"),
        ({"hidden_size": "large"}, "mlx-lm could not convert copy"),
    ],
)
def test_target_that_cannot_be_converted_is_one_clear_error(
    copy: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    set_config(copy, **changes)
    with pytest.raises(CheckpointError, match=message):
        convert_target(copy, tmp_path / "out")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["copy"]


def test_target_with_a_damaged_weight_file_is_refused_before_it_is_mapped(
    copy: Path, tmp_path: Path
) -> None:
    with (copy / "model.safetensors").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a sound safetensors"):
        convert_target(copy, tmp_path / "out")


def test_code_in_the_folder_is_neither_run_nor_copied(copy: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "executed"
    for name in ("modeling_llama.py", "tokenization_llama.py"):
        (copy / name).write_text(f"open({str(sentinel)!r}, 'w')")
    set_config(copy, auto_map={"AutoModelForCausalLM": "modeling_llama.Model"})
    convert_target(copy, tmp_path / "out", bits=None)
    assert not sentinel.exists()
    assert list((tmp_path / "out").glob("*.py")) == []


@pytest.mark.parametrize("options", [{"bits": 5}, {"group_size": 48}, {"bits": 0}])
def test_quantization_that_is_not_offered_is_refused(
    source: Path, tmp_path: Path, options: dict[str, int]
) -> None:
    with pytest.raises(EagleError, match="use 4 or 8 bits, 32, 64 or 128"):
        convert_target(source, tmp_path / "out", **options)


def test_facts_are_the_same_before_and_after_conversion(source: Path, tmp_path: Path) -> None:
    convert_target(source, tmp_path / "out")
    before, after = read_facts(source), read_facts(tmp_path / "out")
    assert before[:5] == ("pydoc-llama", "llama", 8, 256, 4096)
    assert after[1:5] == before[1:5]
    assert after.config_sha256 != before.config_sha256
    assert TargetFacts._fields[5] == "config_sha256"
