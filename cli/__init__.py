"""The command line of mlx-eagle: a click group, and one module per command."""

from mlx_eagle.cli.main import main

__all__ = ["main"]
