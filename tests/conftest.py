"""Tiny random targets and heads, and the trained fixture pair where it is present."""

import importlib
import json
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_eagle.heads.config import HeadConfig

ROOT = Path(__file__).resolve().parents[1]
# `python -m pytest` puts the checkout first; the tests always see the installed package.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]

# A shell that starts the tests in the background lets them ignore Ctrl-C, and so all programs that
# they start: those are to be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}

# What each architecture needs beyond SMALL. The windows are shorter than the prompts of the tests.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "intermediate_size": 64,
        "sliding_window": 8,
    },
    "gemma2": {"query_pre_attn_scalar": 16.0},
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    "phi3": {},
    "cohere": {"layer_norm_eps": 1e-5},
    "olmo2": {},
    "glm4": {"partial_rotary_factor": 0.5},
    "granite": {
        "logits_scaling": 2.0,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.5,
    },
    "smollm3": {},
}


def build_target(architecture: str, **overrides: Any) -> nn.Module:
    """Build a tiny random float32 model with one of mlx-lm's own architectures."""
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    config = {"model_type": architecture} | SMALL | ARCHITECTURES.get(architecture, {}) | overrides
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    # mlx starts gpt-oss' sinks and all norms at constants; random ones hide fewer mistakes.
    noisy = [
        (name, value + 0.1 * mx.random.normal(value.shape)) if value.ndim == 1 else (name, value)
        for name, value in tree_flatten(model.parameters())
    ]
    model.load_weights(noisy)
    model.set_dtype(mx.float32)
    model.eval()
    mx.eval(model.parameters())
    return model


@pytest.fixture(scope="session")
def tiny_target() -> Callable[..., nn.Module]:
    return build_target


@pytest.fixture(scope="session")
def head_config() -> HeadConfig:
    """A head so small that its forward pass can be followed by hand."""
    return HeadConfig(
        algorithm="eagle3",
        hidden_size=32,
        target_hidden_size=32,
        target_vocab_size=64,
        draft_vocab_size=48,
        intermediate_size=80,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        rope_scaling=None,
        rope_interleaved=False,
        rope_dims=8,
        max_position_embeddings=512,
        sliding_windows=(None,),
        taps=(1, 2, 3),
        fuse_taps=True,
        norm_before_fc=False,
        fc_norm=False,
        input_layernorm=True,
        hidden_norm=True,
        double_norm=False,
        norm_before_residual=False,
        norm_output=False,
        final_norm=True,
        qk_norm=False,
        attention_bias=False,
        attention_output_bias=False,
        mlp_bias=False,
        fc_bias=False,
        own_embedding=False,
        own_lm_head=True,
        mask_token_id=None,
    )


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of the trained pair; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MLX_EAGLE_FIXTURES", ROOT.parent / "shared" / "fixtures"))
    if not (folder / "pydoc-llama" / "model.safetensors").is_file():
        pytest.skip(f"no fixture pair in {folder}; set MLX_EAGLE_FIXTURES to its folder")
    return folder


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """The 60 held-out prompts for the trained pair."""
    lines = (ROOT / "tests" / "data" / "prompts.jsonl").read_text().splitlines()
    return [json.loads(line)["prompt"] for line in lines]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing of this machine's own cache is read or written, by programs under test neither."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_EAGLE_CACHE", str(folder))
        yield folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exactness",
        choices=["quick", "broad", "full"],
        default="quick",
        help="quick: 60 runs of 64 tokens; broad: 240 of 256 (half an hour), and all rounds of the "
        "reference; full: every prompt with every shape and drafter, 2400 of 256 (hours)",
    )


@pytest.fixture(scope="session")
def trained_head(fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixture head, converted without quantization."""
    from mlx_eagle.convert.heads import convert_head

    out = tmp_path_factory.mktemp("converted") / "head"
    convert_head(fixtures / "pydoc-eagle3", fixtures / "pydoc-llama", out, bits=None)
    return out


@pytest.fixture(scope="session")
def engine(fixtures: Path, trained_head: Path) -> Any:
    """The trained pair in float32."""
    import mlx_eagle

    return mlx_eagle.load(fixtures / "pydoc-llama", trained_head, dtype="float32", calibrate=False)


@pytest.fixture(scope="session")
def demo() -> Any:
    """The demo pair that ships in the package."""
    import mlx_eagle

    return mlx_eagle.load(calibrate=False)


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


@pytest.fixture
def save_checkpoint(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write a head's files and a target of which only config.json exists."""

    def save(
        config: dict[str, Any], file: str, tensors: dict[str, np.ndarray], target: dict[str, Any]
    ) -> tuple[Path, Path]:
        folders = tmp_path / "published", tmp_path / "target"
        for folder, content in zip(folders, (config, target), strict=True):
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(content))
        save_tensors(folders[0], file, tensors)
        return folders

    return save


@pytest.fixture
def publish(save_checkpoint: Callable[..., tuple[Path, Path]]) -> Callable[..., Published]:
    """Write a random head as a publisher of data/publishers.json would, changed as told."""

    def write(
        publisher: str,
        *,
        facts: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        names: dict[str, str | None] | None = None,
        file: str | None = None,
        target: dict[str, Any] | None = None,
    ) -> Published:
        known = json.loads((ROOT / "tests" / "data" / "publishers.json").read_text())
        theirs = known[publisher]
        true = SimpleNamespace(**(known["plain head"] | theirs["facts"] | (facts or {})))
        tensors = _head_tensors(true)
        renames = theirs["names"] if names is None else names
        found = {_published_name(n, renames): v for n, v in tensors.items()}
        stored = {n: v for n, v in found.items() if n is not None and "target." not in n}
        sizes = {"num_hidden_layers": true.n, "hidden_size": true.H, "vocab_size": true.V}
        source, verifier = save_checkpoint(
            _head_config(true, theirs["config"] | (config or {})),
            file or theirs["file"],
            stored,
            {"model_type": "llama", **sizes, **(target or {})},
        )
        return Published(source, verifier, true, tensors)

    return write


@pytest.fixture
def fake_hub() -> Iterator[Any]:
    """A hub on loopback; tests give it its files and hand its url to processes of their own."""
    helper = runpy.run_path(str(ROOT / "tests" / "fake_hub.py"))
    with helper["FakeHub"]() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def schemas() -> Any:
    """`random_schema` and `closing_bias` of random_schemas.py."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "random_schemas.py")))


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The loop of the chat with a fake conversation behind it and a buffer for a terminal."""
    monkeypatch.setattr("mlx_eagle.cli.chat.repl.fetch_models", lambda source, console: None)
    return runpy.run_path(str(ROOT / "tests" / "fake_chat.py"))["Chat"]()
