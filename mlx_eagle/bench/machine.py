"""The machine and the versions of everything that made a figure, noted in every report."""

import platform
from importlib import metadata
from typing import Any

import mlx.core as mx

PACKAGES = ("mlx-eagle", "mlx", "mlx-lm", "numpy")


def describe_machine() -> dict[str, Any]:
    """Return chip, memory in bytes, device, system and versions."""
    facts = mx.device_info()
    return {
        "chip": str(facts.get("device_name", "unknown")),
        "memory_bytes": facts.get("memory_size"),
        "device": "GPU" if mx.default_device() == mx.gpu else "CPU",
        "system": _system(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _system() -> str:
    """Return the operating system with its version."""
    release = platform.mac_ver()[0]
    return f"macOS {release}" if release else f"{platform.system()} {platform.release()}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed as a package"
