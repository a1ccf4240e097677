"""Lets `python -m mlx_eagle.cli` do what `mlx-eagle` does."""

from mlx_eagle.cli.main import main

main()
