"""The old name of `mlx_eagle.mlx_lm_api`; it goes with the next release."""

import warnings

from mlx_eagle.mlx_lm_api import (
    PromptCache,
    generate,
    load,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    stream_generate,
)

__all__ = [
    "PromptCache",
    "generate",
    "load",
    "load_prompt_cache",
    "make_prompt_cache",
    "save_prompt_cache",
    "stream_generate",
]

warnings.warn("import mlx_eagle.mlx_lm_api in place of mlx_eagle.drop_in", FutureWarning, 2)
