"""A tiny random target in a folder, with the demo's tokenizer, and texts to train a head on."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

import mlx_eagle
from tiny_models import ARCHITECTURES, SMALL, build_target

DEMO = Path(mlx_eagle.__file__).parent / "demo" / "target"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "vocab_size": 4096}

LORA = {
    "fine_tune_type": "lora",
    "num_layers": 1,
    "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
}


def write_tiny_target(folder: Path, **changes: int) -> Path:
    """Write a random Llama of 4 layers that reads and writes as the demo target does."""
    sizes = SIZES | changes
    model = build_target("llama", **sizes)
    folder.mkdir(parents=True)
    for file in DEMO.glob("*token*"):
        shutil.copy(file, folder)
    shutil.copy(DEMO / "chat_template.jinja", folder)
    config = {"model_type": "llama"} | SMALL | ARCHITECTURES["llama"] | sizes
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


def write_conversations(file: Path, n: int, *, answered: bool = True) -> Path:
    """Write so many short conversations."""
    names = ("os", "re", "io", "sys", "json", "math", "time", "glob", "heapq", "shutil")
    lines = []
    for i in range(n):
        name = f"{names[i % len(names)]}.part{i}"
        messages = [{"role": "user", "content": f"What does {name} do?"}]
        if answered:
            messages.append({"role": "assistant", "content": f"It copies {name} to a file."})
        lines.append(json.dumps({"messages": messages}) + "\n")
    file.write_text("".join(lines))
    return file


def write_adapter(folder: Path, value: float) -> Path:
    """Write a LoRA adapter of rank 2 for a tiny target, all of whose weights are a number."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(LORA))
    name = "model.layers.3.self_attn.q_proj"
    weights = {"lora_a": mx.full((32, 2), value), "lora_b": mx.full((2, 32), value)}
    mx.save_safetensors(
        str(folder / "adapters.safetensors"), {f"{name}.{n}": a for n, a in weights.items()}
    )
    return folder
