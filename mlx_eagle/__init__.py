"""mlx-eagle: a local inference runtime on MLX that drafts with an EAGLE-3 head.

The public names are imported on first use, so that `mlx-eagle --help` does not wait for MLX.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Python started in a checkout finds this folder before the installed package; convert/ and cli/,
# which install as parts of it, are beside it there.
_beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_beside, "convert", "heads.py")):
    __path__.append(_beside)

if TYPE_CHECKING:
    from mlx_eagle.decoding.stats import GenerationStats
    from mlx_eagle.engine import Engine
    from mlx_eagle.errors import (
        CheckpointError,
        ClusterError,
        EagleError,
        HubError,
        UnsupportedTargetError,
    )
    from mlx_eagle.loading import load
    from mlx_eagle.session.options import GenerationOptions
    from mlx_eagle.session.responses import GenerationResponse, GenerationResult
    from mlx_eagle.session.session import Session
    from mlx_eagle.tree import DraftTree, TreeShape
    from mlx_eagle.worker import Worker

_HOME = {
    "CheckpointError": "errors",
    "ClusterError": "errors",
    "EagleError": "errors",
    "HubError": "errors",
    "UnsupportedTargetError": "errors",
    "DraftTree": "tree",
    "TreeShape": "tree",
    "Engine": "engine",
    "load": "loading",
    "Session": "session.session",
    "GenerationResponse": "session.responses",
    "GenerationResult": "session.responses",
    "GenerationStats": "decoding.stats",
    "GenerationOptions": "session.options",
    "Worker": "worker",
}

__all__ = [
    "CheckpointError",
    "ClusterError",
    "DraftTree",
    "EagleError",
    "Engine",
    "GenerationOptions",
    "GenerationResponse",
    "GenerationResult",
    "GenerationStats",
    "HubError",
    "Session",
    "TreeShape",
    "UnsupportedTargetError",
    "Worker",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name from the module it lives in."""
    if name not in _HOME:
        raise AttributeError(f"module 'mlx_eagle' has no attribute {name!r}")
    return getattr(import_module(f"mlx_eagle.{_HOME[name]}"), name)
