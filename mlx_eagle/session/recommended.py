"""The sampling that a target's publisher recommends, in its generation_config.json.

Many models repeat themselves for ever where they are decoded greedily, and their publishers say how
to sample. Chat and command line take that as their defaults; the library, which promises the
target's greedy text to callers that ask for nothing, only tells it.
"""

from pathlib import Path
from typing import Any

from mlx_eagle.files.json_files import read_json
from mlx_eagle.option import options_of
from mlx_eagle.session.options import GenerationOptions

FILE = "generation_config.json"
NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def read_recommended(folder: Path) -> dict[str, Any]:
    """Return options of `GenerationOptions` that differ from their defaults; empty if none do.

    Without `do_sample` a publisher recommends greedy decoding, whatever else the file says. Values
    that no option can have are left out.

    Args:
        folder: the target.

    Raises:
        CheckpointError: if the file is there and is not JSON.
    """
    if not (folder / FILE).exists():
        return {}
    config = read_json(folder / FILE)
    if config.get("do_sample") is not True:
        return {}
    described, defaults = options_of(GenerationOptions), GenerationOptions()
    found = {"temperature": 1.0} | {name: config[name] for name in NAMES if name in config}
    if found.get("repetition_penalty") == 1.0:
        del found["repetition_penalty"]  # which is none
    return {
        name: value
        for name, value in found.items()
        if not described[name].fault(value) and value != getattr(defaults, name)
    }
