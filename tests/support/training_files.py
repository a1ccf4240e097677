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
