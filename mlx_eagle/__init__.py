"""mlx-eagle: a local inference runtime on MLX that drafts with an EAGLE-3 head.

The public names are imported on first use, so that `mlx-eagle --help` does not wait for MLX.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "CheckpointError": "errors",
    "EagleError": "errors",
    "HubError": "errors",
    "UnsupportedTargetError": "errors",
    "DraftTree": "tree",
    "TreeShape": "tree",
    "Engine": "engine",
    "load": "engine",
    "Session": "session",
    "GenerationResponse": "responses",
    "GenerationResult": "responses",
    "GenerationStats": "stats",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in."""
    if name not in _HOME:
        raise AttributeError(f"module 'mlx_eagle' has no attribute {name!r}")
    return getattr(import_module(f"mlx_eagle.{_HOME[name]}"), name)
