"""Targets: what mlx-lm's own converter makes of them, however they were published."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

import mlx_eagle
from cases import broad, rotated
from mlx_eagle.convert.quantization import MODES, Quantization, choose_quantization
from mlx_eagle.convert.targets import convert_target
from mlx_eagle.errors import CheckpointError, EagleError

PROMPT = mx.array([[5, 99, 102, 7, 40, 12]])
DEMO = Path(mlx_eagle.__file__).parent / "demo" / "target"
ALL = [Quantization(b, g, name) for name, m in MODES.items() for b in m.bits for g in m.group_sizes]
FOUR_BITS = Quantization(4, 64, "affine")
# By default every mode, and of the affine one bits that fill no byte, and the widest of both.
FEW = {Quantization(3, 32, "affine"), Quantization(8, 128, "affine")}
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_hidden_layers": 2}
Tensors = dict[str, mx.array]


@pytest.fixture
def publish(tmp_path: Path, tiny_target: Callable[..., nn.Module]) -> Callable[..., Path]:
    """Write a tiny random target as Hugging Face has it: config, tokenizer and weights."""

    def write(
        architecture: str = "llama",
        *,
        dtype: str = "bfloat16",
        sizes: dict[str, int] = WIDE,
        **changes: Any,
    ) -> Path:
        model = tiny_target(architecture, **sizes)
        tensors = {
            name: value.astype(getattr(mx, dtype))
            for name, value in _apart(dict(tree_flatten(model.parameters())))
        }
        config = dataclasses.asdict(model.args) | {"torch_dtype": dtype} | changes
        return save_source(tmp_path / f"tiny-{architecture}", config, tensors)

    return write


def _apart(tensors: Tensors) -> Iterator[tuple[str, mx.array]]:
    """Yield weights under published names: mlx-lm stacks the experts, publishers do not."""
    for name, value in tensors.items():
        if ".switch_mlp." in name:
            for number, expert in enumerate(value):
                yield name.replace(".switch_mlp.", f".experts.{number}."), expert
        else:
            yield name, value


def save_source(folder: Path, config: dict[str, Any], tensors: Tensors) -> Path:
    folder.mkdir()
    for file in DEMO.glob("token*.json"):
        shutil.copyfile(file, folder / file.name)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "pt"})
    return folder


def lay_out(source: Path, suffix: str, n_shards: int) -> Path:
    """Return a copy of a target whose weights are in other files."""
    folder = source.with_name(f"{source.name}-{n_shards}{suffix}")
    shutil.copytree(source, folder)
    tensors = load_weights(folder)
    (folder / "model.safetensors").unlink()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = [f"{stem}-{i + 1:05}-of-{n_shards:05}{suffix}" for i in range(n_shards)]
    places = {name: names[i % n_shards] for i, name in enumerate(tensors)}
    if n_shards == 1:
        places = dict.fromkeys(tensors, f"{stem}{suffix}")
    else:
        index = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
        (folder / f"{stem}{suffix}.index.json").write_text(index)
    for file in set(places.values()):
        shard = {name: value for name, value in tensors.items() if places[name] == file}
        if suffix == ".safetensors":
            mx.save_safetensors(str(folder / file), shard, metadata={"format": "pt"})
        else:
            save_pickle(folder / file, shard)
    return folder


def save_pickle(file: Path, tensors: Tensors) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch writes the pickles")
    words = {name: np.array(value.view(mx.int16)) for name, value in tensors.items()}
    torch.save({n: torch.from_numpy(w).view(torch.bfloat16) for n, w in words.items()}, file)


@pytest.fixture
def copy(fixtures: Path, tmp_path: Path) -> Path:
    """A copy of the fixture target that a test may change."""
    return Path(shutil.copytree(fixtures / "pydoc-llama", tmp_path / "copy", copy_function=_plain))


def _plain(source: str, place: str) -> None:
    shutil.copyfile(source, place)


def logits(folder: Path) -> mx.array:
    """Return the logits [1, L, V] float32 of PROMPT, by mlx-lm's own loader."""
    from mlx_lm import load

    model, _ = load(str(folder))
    return model(PROMPT).astype(mx.float32)


def load_weights(folder: Path) -> Tensors:
    return dict(mx.load(str(folder / "model.safetensors")))


def set_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def convert_by_mlx_lm(source: Path, out: Path, q: Quantization | None, **options: Any) -> None:
    from mlx_lm.convert import convert

    if q is not None:
        options |= {"q_bits": q.bits, "q_group_size": q.group_size, "q_mode": q.mode}
    convert(str(source), str(out), quantize=q is not None, **options)


def assert_same(ours: Path, theirs: Path) -> None:
    """Demand the same files, configuration, weights and logits, bit for bit."""
    assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
    assert (ours / "config.json").read_text() == (theirs / "config.json").read_text()
    weights, expected = load_weights(ours), load_weights(theirs)
    assert set(weights) == set(expected)
    for name, value in expected.items():
        assert weights[name].dtype == value.dtype, name
        assert mx.array_equal(weights[name], value), name
    assert mx.array_equal(logits(ours), logits(theirs))


# Four bits are compared on tiny targets below: to quantize 8 million numbers twice takes seconds.
@pytest.mark.parametrize("bits", [broad(4), broad(8), None])
def test_target_is_what_mlx_lm_makes_of_it(
    publish: Callable[..., Path],
    tmp_path: Path,
    bits: int | None,
    is_quick: bool,
    request: pytest.FixtureRequest,
) -> None:
    source = publish() if is_quick else request.getfixturevalue("fixtures") / "pydoc-llama"
    quantization = bits and choose_quantization(bits=bits)
    convert_target(source, tmp_path / "ours", quantization or None)
    convert_by_mlx_lm(source, tmp_path / "theirs", quantization or None)
    assert_same(tmp_path / "ours", tmp_path / "theirs")
    if bits is None:
        assert mx.array_equal(logits(tmp_path / "ours"), logits(source))


@pytest.mark.parametrize(
    ("suffix", "n_shards", "architecture"),
    [
        (".safetensors", 3, "llama"),
        pytest.param(".bin", 1, "llama", marks=[pytest.mark.torch, pytest.mark.broad]),
        pytest.param(".bin", 3, "qwen3_moe", marks=pytest.mark.torch),
        broad(".safetensors", 1, "llama"),
        broad(".safetensors", 1, "qwen3_moe"),
        broad(".safetensors", 3, "qwen3_moe"),
        pytest.param(".bin", 1, "qwen3_moe", marks=[pytest.mark.torch, pytest.mark.broad]),
        pytest.param(".bin", 3, "llama", marks=[pytest.mark.torch, pytest.mark.broad]),
    ],
)
def test_four_bits_from_any_files_are_those_of_mlx_lm_from_one(
    publish: Callable[..., Path], tmp_path: Path, suffix: str, n_shards: int, architecture: str
) -> None:
    source = publish(architecture)
    four_bits = choose_quantization()
    convert_target(lay_out(source, suffix, n_shards), tmp_path / "ours", four_bits)
    convert_by_mlx_lm(source, tmp_path / "theirs", four_bits)
    assert_same(tmp_path / "ours", tmp_path / "theirs")
    assert "tokenizer.json" in {file.name for file in (tmp_path / "ours").iterdir()}


@pytest.mark.parametrize(
    "quantization",
    [q if q in FEW or q.mode != "affine" else broad(q) for q in ALL],
    ids=lambda q: f"{q.mode}-{q.bits}-{q.group_size}",
)
def test_every_quantization_of_mlx_is_written_and_run_by_mlx_lm(
    publish: Callable[..., Path], tmp_path: Path, quantization: Quantization
) -> None:
    from mlx_lm import load

    source = publish()
    convert_target(source, tmp_path / "out", quantization)
    model, _ = load(str(tmp_path / "out"))
    layers = [m for _, m in model.named_modules() if hasattr(m, "bits")]
    assert len(layers) == 2 * 7 + 2
    assert {(layer.bits, layer.group_size, layer.mode) for layer in layers} == {quantization}
    assert mx.isfinite(model(PROMPT)).all()
    down = model.model.layers[1].mlp.down_proj
    options = quantization._asdict()
    weight = mx.dequantize(down.weight, down.scales, down.get("biases"), **options)
    published = load_weights(source)["model.layers.1.mlp.down_proj.weight"]
    again = mx.quantize(published, **options)
    assert mx.array_equal(weight, mx.dequantize(*again, **options))


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    list(rotated(["float16", "bfloat16", "float32"], [None, FOUR_BITS, ALL[-1]])),
)
def test_everything_that_is_not_packed_has_the_type_that_was_asked_for(
    publish: Callable[..., Path], tmp_path: Path, dtype: str, quantization: Quantization | None
) -> None:
    source = publish(dtype="bfloat16")
    convert_target(source, tmp_path / "out", quantization, dtype=dtype)
    types = {value.dtype for value in load_weights(tmp_path / "out").values()}
    packed = (
        {mx.uint32, mx.uint8} if quantization and quantization.mode != "affine" else {mx.uint32}
    )
    assert types == {getattr(mx, dtype)} | (packed if quantization else set())
    convert_by_mlx_lm(source, tmp_path / "theirs", quantization, dtype=dtype)
    assert mx.array_equal(logits(tmp_path / "out"), logits(tmp_path / "theirs"))


def test_configuration_names_the_type_that_was_asked_for(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    nested = {"text_config": {"dtype": "bfloat16"}}
    convert_target(publish("llama", **nested), tmp_path / "out", dtype="float32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["torch_dtype"], config["text_config"]["dtype"]) == ("float32", "float32")
    assert "dtype" not in config


def test_type_is_that_of_the_configuration_unless_another_is_asked_for(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    source = publish(dtype="bfloat16", torch_dtype="float16")
    convert_target(source, tmp_path / "out")
    assert {v.dtype for v in load_weights(tmp_path / "out").values()} == {mx.float16}


def test_target_that_was_not_quantized_can_be_converted_again(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    source = publish("qwen3_moe")
    convert_target(source, tmp_path / "plain")
    convert_target(tmp_path / "plain", tmp_path / "twice", choose_quantization())
    convert_target(source, tmp_path / "once", choose_quantization())
    assert_same(tmp_path / "twice", tmp_path / "once")
    with pytest.raises(CheckpointError, match="once is already quantized for MLX: use it as it is"):
        convert_target(tmp_path / "once", tmp_path / "out")


@pytest.mark.torch
@pytest.mark.parametrize("architecture", ["llama", "qwen3_moe"])
def test_unquantized_target_gives_the_logits_of_transformers(
    publish: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = publish(architecture, dtype="float32")
    convert_target(source, tmp_path / "out")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected = oracle(torch.tensor(PROMPT.tolist())).logits.numpy()
    found = np.array(logits(tmp_path / "out"))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_only_stderr_hears_of_the_progress(
    publish: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = publish()
    capsys.readouterr()
    convert_target(source, tmp_path / "out", choose_quantization())
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "[INFO]" in printed.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_j_9000"}, "mlx-lm has no model of the type 'gpt_j_9000'"),
        ({"model_file": "evil.py"}, "brings its own model code, which is never run"),
        ({"hidden_size": 128}, "mlx-lm could not convert copy: ValueError: Expected shape"),
        ({"hidden_size": "large"}, "mlx-lm could not convert copy: TypeError"),
        ({"num_attention_heads": 0}, "mlx-lm could not convert copy: "),
        ({"num_hidden_layers": 2}, r"convert copy: ValueError: Received \d+ parameters not in"),
        ({"rope_scaling": {"type": "spiral"}}, "mlx-lm could not convert copy: "),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized as awq: convert its 16-bit"),
    ],
)
def test_target_that_cannot_be_converted_is_one_clear_line_and_leaves_nothing(
    copy: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    set_config(copy, **changes)
    with pytest.raises(CheckpointError, match=message) as raised:
        convert_target(copy, tmp_path / "out", choose_quantization())
    assert sorted(item.name for item in tmp_path.iterdir()) == ["copy"]
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 450
    assert "partial" not in str(raised.value)


def test_groups_that_fit_no_layer_are_refused_and_leave_nothing(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    source = publish(sizes=WIDE | {"hidden_size": 96, "intermediate_size": 96, "head_dim": 24})
    with pytest.raises(EagleError, match="no layer of tiny-llama can be quantized in groups of 64"):
        convert_target(source, tmp_path / "out", choose_quantization())
    assert [item.name for item in tmp_path.iterdir()] == ["tiny-llama"]
    convert_target(source, tmp_path / "out", choose_quantization(group_size=32))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, OSError])
def test_conversion_that_is_stopped_after_its_weights_are_written_leaves_nothing(
    publish: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: type[BaseException],
) -> None:
    source, seen = publish(), []

    def halt(*arguments: Any, **options: Any) -> None:
        seen.extend(tmp_path.rglob("converted/model.safetensors"))
        raise stop

    monkeypatch.setattr("mlx_lm.utils.save_config", halt)
    with pytest.raises((stop, CheckpointError)):
        convert_target(source, tmp_path / "out")
    assert len(seen) == 1
    assert [item.name for item in tmp_path.iterdir()] == ["tiny-llama"]


def test_target_with_a_damaged_weight_file_is_refused_before_it_is_mapped(
    copy: Path, tmp_path: Path
) -> None:
    with (copy / "model.safetensors").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a sound safetensors"):
        convert_target(copy, tmp_path / "out")


def test_weights_that_the_index_does_not_name_are_not_loaded(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    source = publish()
    sharded = lay_out(source, ".safetensors", 2)
    mx.save_safetensors(str(sharded / "model-old.safetensors"), {"model.norm.weight": mx.ones(1)})
    convert_target(sharded, tmp_path / "ours")
    convert_target(source, tmp_path / "theirs")
    assert_same(tmp_path / "ours", tmp_path / "theirs")


def test_code_in_the_folder_is_neither_run_nor_copied(copy: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "executed"
    for name in ("modeling_llama.py", "tokenization_llama.py"):
        (copy / name).write_text(f"open({str(sentinel)!r}, 'w')")
    set_config(copy, auto_map={"AutoModelForCausalLM": "modeling_llama.Model"})
    convert_target(copy, tmp_path / "out")
    assert not sentinel.exists()
    assert list((tmp_path / "out").glob("*.py")) == []


def test_tokenizer_that_is_a_link_out_of_the_folder_is_refused(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    source = publish()
    (tmp_path / "private.txt").write_text("a secret")
    (source / "notes.txt").symlink_to(tmp_path / "private.txt")
    with pytest.raises(CheckpointError, match=r"tiny-llama/notes\.txt is a link to"):
        convert_target(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_snapshot_of_the_hugging_face_cache_is_converted_from_its_links(
    publish: Callable[..., Path], tmp_path: Path
) -> None:
    source, repo = publish(), tmp_path / "models--owner--name"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, file in enumerate(source.iterdir()):
        shutil.copyfile(file, repo / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    convert_target(snapshot, tmp_path / "ours")
    convert_target(source, tmp_path / "theirs")
    assert_same(tmp_path / "ours", tmp_path / "theirs")
    assert not any(file.is_symlink() for file in (tmp_path / "ours").iterdir())
    assert all(str(tmp_path) not in f.read_text() for f in (tmp_path / "ours").glob("*.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float8"}, "dtype is 'float8'; it must be one of float16, bfloat16, float32"),
        ({"quantization": Quantization(5, 48, "affine")}, "affine has 2, 3, 4, 5, 6 or 8 bits in"),
        ({"quantization": Quantization(4, 32, "zip")}, "there is no mode 'zip'"),
    ],
)
def test_precision_that_is_not_offered_is_refused(
    fixtures: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(EagleError, match=message):
        convert_target(fixtures / "pydoc-llama", tmp_path / "out", **options)
