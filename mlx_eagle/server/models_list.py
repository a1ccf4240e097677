"""`/v1/models`: one body that clients of OpenAI's and Anthropic's APIs and Codex all read."""

from typing import Any

from mlx_eagle.server.ids import ServedModel

OUTPUT_OF_TOOLS = 10_000  # tokens that Codex keeps of what a tool says
INSTRUCTIONS = (
    "You are a coding agent in a terminal. Work in small steps: read before you change, use the "
    "tools for every fact, run what you wrote, and say briefly what you did."
)


def one_model(model: ServedModel) -> dict[str, Any]:
    """Return the model as one entry."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "mlx-eagle",
        "type": "model",
        "display_name": model.name,
        "created_at": model.created_at,
        "context_length": model.context,
        "max_model_len": model.context,
    }


def list_models(model: ServedModel) -> dict[str, Any]:
    """Return the body of the list."""
    return {
        "object": "list",
        "data": [one_model(model)],
        "has_more": False,
        "first_id": model.name,
        "last_id": model.name,
        "models": [_codex_entry(model)],
    }


def _codex_entry(model: ServedModel) -> dict[str, Any]:
    """Return the entry of Codex's catalogue, with every field that its releases ask for."""
    return {
        "slug": model.name,
        "display_name": model.name,
        "description": None,
        "supported_reasoning_levels": [],
        "shell_type": "unified_exec",
        "visibility": "list",
        "supported_in_api": True,
        "priority": 0,
        "service_tiers": [],
        "availability_nux": None,
        "upgrade": None,
        "support_verbosity": False,
        "supports_reasoning_summaries": model.thinks,
        "supports_parallel_tool_calls": True,
        "default_verbosity": None,
        "apply_patch_tool_type": None,
        "truncation_policy": {"mode": "tokens", "limit": OUTPUT_OF_TOOLS},
        "experimental_supported_tools": [],
        "input_modalities": ["text"],
        "context_window": model.context or 32_768,
        "base_instructions": INSTRUCTIONS,
        "supports_search_tool": False,
        "use_responses_lite": False,
    }
