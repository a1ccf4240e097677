"""For how many tokens a model was made, by what configurations say in their several ways."""

from typing import Any

import pytest

from mlx_eagle.target.context_length import model_context_length


def yarn(factor: float, **more: int) -> dict[str, Any]:
    scaling = {"type": "yarn", "factor": factor} | more
    return {"max_position_embeddings": 32768, "rope_theta": 1e6, "rope_scaling": scaling}


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": "many"}, None),
        # B9: rope scaling promises more than the positions say; llama3's are counted already.
        (yarn(4.0, original_max_position_embeddings=32768), 131072),
        (yarn(4.0), 131072),
        (yarn(2.0, original_max_position_embeddings=4096), 32768),
        ({"rope_parameters": {"rope_type": "default"}, "max_position_embeddings": 512}, 512),
        ({}, None),
    ],
)
def test_b9_the_context_that_a_model_was_made_for(
    config: dict[str, Any], tokens: int | None
) -> None:
    assert model_context_length(config) == tokens
