"""A small target whose texts are mostly predictable, and a head that often foresees them.

A row of the demo pair's target takes seven million products, which is nearly all of the time of a
test that asks for answers. A row of this one takes under half a million, and nothing was trained:
each word's embedding is that of the word before it, turned by a fixed rotation of the space; the
target's output layer looks for what its last state becomes by that turn, and so does the head,
which turns once more at each step. Random layers with attention disturb the target's states, so
that its tokens depend on all rows that it has, and half of the rounds accept nothing
(tests/test_turning_pair.py).
"""

import json
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_eagle.engine import Engine, EngineInfo
from mlx_eagle.heads.config import FORMAT_VERSION, MODEL_TYPE
from mlx_eagle.heads.eagle import EagleHead
from mlx_eagle.hub.packaged import DEMO
from mlx_eagle.session.limits import Limits, bytes_per_row
from mlx_eagle.speculation import ON
from mlx_eagle.target.target import Target
from mlx_eagle.target.tokenizer import read_tokenizer
from tiny_models import ARCHITECTURES, SMALL, build_target, tiny_head_config

N_TOKENS = 4096  # of the demo pair's tokenizer
SIZE = 64
# Factors of the random layers' weights, with which the pair behaves much as the demo pair does.
ATTENTION, QUERIES, INNER = 4.3, 3.0, 2.2
GROUP_SIZE = 32  # numbers that share a scale, where weights are quantized
HEAD_DIM = 32
SHARPNESS = 0.4  # of the distributions: what is drawn at temperature 1 is seldom no word


def rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a random rotation [h, h]: its powers bring no vector back."""
    basis, _ = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))
    turned = np.zeros((SIZE, SIZE))
    for i, angle in enumerate(rng.uniform(0.5, 2.6, SIZE // 2)):
        c, s = np.cos(angle), np.sin(angle)
        turned[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = [[c, -s], [s, c]]
    return basis @ turned @ basis.T


def embeddings(
    turn: np.ndarray, n_tokens: int, words: list[int], rng: np.random.Generator
) -> np.ndarray:
    """Return [V, h]: words follow one another by the turn, in an order that is drawn."""
    rows = rng.normal(size=(n_tokens, SIZE))
    rows *= np.sqrt(SIZE) / np.linalg.norm(rows, axis=1, keepdims=True)
    order = rng.permutation(words)
    for before, after in pairwise(order):
        rows[after] = turn @ rows[before]
    return rows


def make_turning_pair(
    n_tokens: int,
    words: list[int],
    architecture: str = "llama",
    bits: int | None = None,
    **changes: Any,
) -> tuple[nn.Module, EagleHead]:
    """Return the target, in float32, and its head.

    Args:
        n_tokens: of the vocabulary.
        words: the tokens of which texts are made; the others may stand in prompts.
        architecture: of the target, in mlx-lm; its layers are named as llama's.
        bits: of the target's weights; None leaves them in float32.
        **changes: of the target's configuration, such as head_dim.
    """
    rng = np.random.default_rng(5)
    turn = rotation(rng)
    table = embeddings(turn, n_tokens, words, rng)
    sizes = _sizes(n_tokens, changes.get("head_dim", HEAD_DIM))
    model = build_target(architecture, **sizes | changes)
    for layer in model.layers:
        attention = layer.self_attn
        attention.q_proj.weight = attention.q_proj.weight * QUERIES
        attention.o_proj.weight = attention.o_proj.weight * ATTENTION
        mlp = layer.mlp.switch_mlp if "switch_mlp" in layer.mlp else layer.mlp
        mlp.down_proj.weight = mlp.down_proj.weight * INNER
        for name in ("q_proj", "k_proj", "v_proj"):
            if "bias" in attention[name]:  # it would lead all texts alike
                attention[name].bias = mx.zeros(attention[name].bias.shape)
    output = np.zeros_like(table)
    output[words] = (table @ turn)[words] * SHARPNESS
    model.model.embed_tokens.weight = mx.array(table, dtype=mx.float32)
    model.model.norm.weight = mx.ones(SIZE)
    model.lm_head.weight = mx.array(output, dtype=mx.float32)
    if bits is not None:
        nn.quantize(model, group_size=GROUP_SIZE, bits=bits)
    head = _make_head(turn, table, words)
    mx.eval(model.parameters(), head.parameters())
    return model, head


def make_turning_engine(
    architecture: str = "llama", bits: int | None = None, **changes: Any
) -> Engine:
    """Return an engine of the pair with the demo pair's tokenizer, whose texts are plain words."""
    tokenizer = read_tokenizer(DEMO / "target", None)
    words = _words_of(tokenizer)
    model, head = make_turning_pair(N_TOKENS, words, architecture, bits, **changes)
    target = Target(model, taps=head.config.taps)
    info = EngineInfo("turning", "float32", "turning", "float32", ON, "cpu", False)
    return Engine(target, tokenizer, head, info, limits=Limits(2048, None, bytes_per_row(target)))


def write_turning_target(folder: Path) -> Path:
    """Write the target of that engine as it is read from a disk; returns the folder."""
    tokenizer = _copy_tokenizer(folder)
    model, _ = make_turning_pair(N_TOKENS, _words_of(tokenizer))
    sizes = {name: value for name, value in vars(model.args).items() if value is not None}
    _write(model, sizes, folder)
    shutil.copyfile(DEMO / "target" / "generation_config.json", folder / "generation_config.json")
    return folder


def write_turning_pair(folder: Path, architecture: str = "llama") -> tuple[Path, Path]:
    """Write a pair as it is read from a disk; returns the folders of target and head.

    Every 40th word ends an answer, and a row of llama's cache is one group of quantized numbers.
    """
    target, place = folder / "target", folder / "head"
    head_dim = SMALL["head_dim"] if architecture == "qwen2" else 64  # qwen2 has no choice
    sizes = _sizes(N_TOKENS, head_dim)
    target.mkdir()
    place.mkdir()
    words = _words_of(_copy_tokenizer(target))
    model, head = make_turning_pair(N_TOKENS, words, architecture, head_dim=head_dim)
    config = {"model_type": architecture} | SMALL | ARCHITECTURES[architecture] | sizes
    made_for = {name: config[name] for name in ("model_type", "num_hidden_layers", "hidden_size")}
    about = {"model_type": MODEL_TYPE, "format_version": FORMAT_VERSION, "quantization": None}
    about["target"] = made_for | {"name": "turning", "vocab_size": N_TOKENS, "config_sha256": ""}
    _write(model, config | {"eos_token_id": words[::40]}, target)
    _write(head, head.config.to_dict() | about, place)
    return target, place


def swap_words(source: Path, folder: Path) -> Path:
    """Copy a target, of whose tokens two have changed places; return the copy."""
    shutil.copytree(source, folder)
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    words = tokenizer["model"]["vocab"]
    first, second = (word for word, id_ in words.items() if id_ in (300, 301))
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(tokenizer))
    return folder


def _copy_tokenizer(folder: Path) -> Any:
    """Copy the demo pair's tokenizer to a folder and read it there."""
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(DEMO / "target" / name, folder / name)
    return read_tokenizer(folder, None)


def _write(network: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Write weights and configuration."""
    weights = dict(tree_flatten(network.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))


def _sizes(n_tokens: int, head_dim: int) -> dict[str, Any]:
    """Return what the target has beyond `SMALL`."""
    return {"vocab_size": n_tokens, "max_position_embeddings": 2048, "head_dim": head_dim}


def _words_of(tokenizer: Any) -> list[int]:
    """Return the tokens that are plain words."""
    texts = [tokenizer.decode([token]) for token in range(N_TOKENS)]
    return [token for token, text in enumerate(texts) if re.fullmatch(" [a-z]{2,}", text)]


def _make_head(turn: np.ndarray, table: np.ndarray, words: list[int]) -> EagleHead:
    """Return a head with an MLP that turns what it is given, beside random attention."""
    changes: dict[str, Any] = {
        "hidden_size": SIZE,
        "target_hidden_size": SIZE,
        "target_vocab_size": len(table),
        "draft_vocab_size": len(words),
        "intermediate_size": SIZE,
        "mlp_bias": True,
        "taps": (1, 2, 4),
    }
    mx.random.seed(4)
    head = EagleHead(replace(tiny_head_config(), **changes))
    head.fc.weight = mx.array(np.hstack([np.zeros((SIZE, 2 * SIZE)), turn]), dtype=mx.float32)
    mlp, open_gate = head.layers[0].mlp, 20.0  # where silu is the identity
    mlp.gate_proj.weight = mx.zeros((SIZE, SIZE))
    mlp.gate_proj.bias = mx.full(SIZE, open_gate)
    mlp.up_proj.weight = mx.array((turn - np.eye(SIZE)) / open_gate, dtype=mx.float32)
    mlp.down_proj.weight = mx.eye(SIZE)
    mlp.up_proj.bias = mlp.down_proj.bias = mx.zeros(SIZE)
    head.lm_head.weight = mx.array(table[words] * SHARPNESS, dtype=mx.float32)
    head.draft_to_target = mx.array(words, dtype=mx.int32)
    return head
