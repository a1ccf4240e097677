"""`/openapi.json`: what the server takes and gives, made from the bodies that it reads."""

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from pydantic.json_schema import models_json_schema

from mlx_eagle.server.bodies import Body

SCHEMAS = "#/components/schemas/"
OBJECT = {"type": "object"}
ERROR = {"description": "Refused, or failed.", "content": {"application/json": {"schema": OBJECT}}}


def describe(posts: Mapping[str, type[Body]], gets: Mapping[str, str]) -> dict[str, Any]:
    """Return the description.

    Args:
        posts: the bodies that paths read.
        gets: the kinds of content that paths give.
    """
    bodies = list(dict.fromkeys(posts.values()))
    named, made = models_json_schema(
        [(body, "validation") for body in bodies], ref_template=SCHEMAS + "{model}"
    )
    paths: dict[str, Any] = {}
    for path, body in posts.items():
        content = {"application/json": {"schema": named[body, "validation"]}}
        paths[path] = {
            "post": {
                "operationId": _name(path),
                "requestBody": {"required": True, "content": content},
                "responses": {"200": _answer(path), "default": ERROR},
            }
        }
    for path, media in gets.items():
        given = {"description": "Done.", "content": {media: {}}}
        responses = {"200": given, "default": ERROR}
        paths[path] = {"get": {"operationId": _name(path), "responses": responses}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "mlx-eagle", "version": metadata.version("mlx-eagle")},
        "paths": paths,
        "components": {"schemas": made.get("$defs", {})},
    }


def _answer(path: str) -> dict[str, Any]:
    """Return what a path gives: JSON, or a stream if that was asked for."""
    content: dict[str, Any] = {"application/json": {"schema": OBJECT}}
    if path.rsplit("/", 1)[-1] in ("completions", "responses", "messages"):
        content["text/event-stream"] = {}
    return {"description": "The answer.", "content": content}


def _name(path: str) -> str:
    return path.strip("/").replace("/", "_") or "page"
