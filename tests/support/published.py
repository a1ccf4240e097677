"""Random heads, written as their publishers would write them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[1] / "data"

# As a value in a configuration: this key is not there.
ABSENT = "(absent)"


class Published(NamedTuple):
    """A published checkpoint and what is true about it."""

    source: Path
    target: Path
    facts: SimpleNamespace
    tensors: dict[str, np.ndarray]  # by our own names, with target.embed_tokens and target.lm_head


def _layer_shapes(facts: SimpleNamespace, layer: int) -> dict[str, tuple[int, ...]]:
    """Shapes of one decoder layer; an EAGLE-3 head's first one reads embedding and hidden state."""
    f, first = facts, layer == 0
    queries, keys, columns = f.nh * f.hd, f.nkv * f.hd, f.h
    shapes: dict[str, tuple[int, ...]] = {"post_attention_layernorm.weight": (f.h,)}
    if f.algorithm != "eagle":
        columns = 2 * f.h if first else f.h
        shapes["input_layernorm.weight"] = (f.h,)
        if first and f.hidden_norm:
            shapes["hidden_norm.weight"] = (f.h,)
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        shapes[f"self_attn.{name}_proj.weight"] = (rows, columns)
        if f.qkv_bias:
            shapes[f"self_attn.{name}_proj.bias"] = (rows,)
    shapes["self_attn.o_proj.weight"] = (f.h, queries)
    if f.o_bias:
        shapes["self_attn.o_proj.bias"] = (f.h,)
    if f.qk_norm:
        shapes |= {f"self_attn.{name}_norm.weight": (f.hd,) for name in "qk"}
    shapes |= {f"mlp.{name}_proj.weight": (f.I, f.h) for name in ("gate", "up")}
    shapes["mlp.down_proj.weight"] = (f.h, f.I)
    return {f"layers.{layer}.{name}": shape for name, shape in shapes.items()}


def _head_shapes(facts: SimpleNamespace) -> dict[str, tuple[int, ...]]:
    """Shapes of all weights of a head, by the names that the reference uses for layer 0."""
    f, columns = facts, len(facts.taps) * facts.H
    shapes: dict[str, tuple[int, ...]] = {}
    if f.algorithm == "eagle":
        shapes["fc.weight"] = (f.h, 2 * f.h)
    else:
        shapes["norm.weight"] = (f.h,)
        if f.fuse:
            shapes["fc.weight"] = (f.h, columns)
    if f.algorithm == "p-eagle":
        shapes["mask_hidden"] = (1, 1, columns)
    if f.fc_bias:
        shapes["fc.bias"] = (f.h,)
    if f.norm_before_fc:
        shapes["input_norm.weight"] = (columns,)
    if f.fc_norm:
        shapes |= {f"fc_norm.{i}.weight": (f.H,) for i in range(len(f.taps))}
    for layer in range(f.layers):
        shapes |= _layer_shapes(f, layer)
    shapes["embed_tokens.weight" if f.own_embedding else "target.embed_tokens"] = (f.V, f.h)
    shapes["lm_head.weight" if f.own_lm_head else "target.lm_head"] = (f.D, f.h)
    return shapes


def _head_tensors(facts: SimpleNamespace) -> dict[str, np.ndarray]:
    """Random float32 weights, and the two vocabulary tables [D] int64 and [V] bool."""
    random = np.random.default_rng(3)
    tensors: dict[str, np.ndarray] = {}
    for name, shape in _head_shapes(facts).items():
        value = random.standard_normal(shape)
        if len(shape) == 1:
            value = 0.3 * value + (0.0 if name.endswith("bias") else 1.0)
        elif len(shape) == 2:
            value *= (2.5 if "q_proj" in name or "k_proj" in name else 1.0) / shape[1] ** 0.5
        tensors[name] = value.astype(np.float32)
    kept = np.sort(random.permutation(facts.V)[: facts.D])
    tensors["d2t"] = (kept - np.arange(facts.D)).astype(np.int64)
    tensors["t2d"] = np.isin(np.arange(facts.V), kept)
    return tensors


def _head_config(facts: SimpleNamespace, changes: dict[str, Any]) -> dict[str, Any]:
    """The sizes under Hugging Face's names, then `changes`; speculators heads nest the sizes."""
    f = facts
    sizes: dict[str, Any] = {"model_type": "llama", "hidden_size": f.h, "intermediate_size": f.I}
    sizes |= {"num_attention_heads": f.nh, "num_key_value_heads": f.nkv, "hidden_act": "silu"}
    sizes |= {"num_hidden_layers": f.layers, "max_position_embeddings": 2048, "vocab_size": f.V}
    sizes |= {"rms_norm_eps": f.eps, "tie_word_embeddings": False}
    vocabulary = {"draft_vocab_size": f.D}
    if "speculators_model_type" in changes:
        layer = sizes | {"head_dim": f.hd} | changes.get("transformer_layer_config", {})
        config = vocabulary | changes
        config["transformer_layer_config"] = {k: v for k, v in layer.items() if v != ABSENT}
    else:
        config = sizes | vocabulary | changes
    return {key: value for key, value in config.items() if value != ABSENT}


def _published_name(name: str, names: dict[str, str | None]) -> str | None:
    """The name of a tensor in the file; None where the publisher leaves it out."""
    for ours, theirs in names.items():
        if theirs is None and ours in name:
            return None
        name = name.replace(ours, theirs or "", 1)
    return name


def save_tensors(folder: Path, file: str, tensors: dict[str, np.ndarray]) -> None:
    """Write tensors as the file's ending says; `{i}` in its name makes two shards and an index."""
    if "{i}" in file:
        shards = [file.format(i=f"0000{i}-of-00002") for i in (1, 2)]
        weight_map = {name: shards[i % 2] for i, name in enumerate(tensors)}
        for shard in shards:
            part = {name: value for name, value in tensors.items() if weight_map[name] == shard}
            save_tensors(folder, shard, part)
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / f"{file.replace('-{i}', '')}.index.json").write_text(json.dumps(index))
    elif file.endswith(".safetensors"):
        arrays = {name: mx.array(value) for name, value in tensors.items()}
        mx.save_safetensors(str(folder / file), arrays)
    else:
        torch = pytest.importorskip("torch")
        torch.save({k: torch.from_numpy(v.copy()) for k, v in tensors.items()}, folder / file)


class Publisher:
    """Writes heads as those of data/publishers.json would, each with a target to be its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(
        self,
        config: dict[str, Any],
        file: str,
        tensors: dict[str, np.ndarray],
        target: dict[str, Any],
    ) -> tuple[Path, Path]:
        """Write a head's files and a target of which only config.json exists; returns both."""
        folders = self.folder / "published", self.folder / "target"
        for folder, content in zip(folders, (config, target), strict=True):
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(content))
        save_tensors(folders[0], file, tensors)
        return folders

    def publish(
        self,
        publisher: str,
        *,
        facts: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        names: dict[str, str | None] | None = None,
        file: str | None = None,
        target: dict[str, Any] | None = None,
    ) -> Published:
        """Write a random head as `publisher` would, changed as told."""
        known = json.loads((DATA / "publishers.json").read_text())
        theirs = known[publisher]
        true = SimpleNamespace(**(known["plain head"] | theirs["facts"] | (facts or {})))
        tensors = _head_tensors(true)
        renames = theirs["names"] if names is None else names
        found = {_published_name(n, renames): v for n, v in tensors.items()}
        stored = {n: v for n, v in found.items() if n is not None and "target." not in n}
        sizes = {"num_hidden_layers": true.n, "hidden_size": true.H, "vocab_size": true.V}
        source, verifier = self.save(
            _head_config(true, theirs["config"] | (config or {})),
            file or theirs["file"],
            stored,
            {"model_type": "llama", **sizes, **(target or {})},
        )
        return Published(source, verifier, true, tensors)
