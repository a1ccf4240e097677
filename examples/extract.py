"""Turn many texts into JSON of one shape: the instructions are read once, answers keep to a schema.

python examples/extract.py
"""

import json

import mlx_eagle

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "kind": {"enum": ["function", "class", "module"]},
        "arguments": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["name", "kind", "arguments"],
    "additionalProperties": False,
}
INSTRUCTIONS = "Describe what the user names, as JSON with its name, kind and number of arguments."
TEXTS = ["shutil.copyfile", "pathlib.Path", "json"]


def main() -> None:
    """Print one line of JSON per text."""
    base = mlx_eagle.load().session(system=INSTRUCTIONS)
    base.read([{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": TEXTS[0]}])
    for text in TEXTS:
        session = base.fork()  # shares what was read, and goes its own way
        responses = list(session.ask(text, json_schema=SCHEMA, max_tokens=300))
        answer = json.loads("".join(response.text for response in responses))
        stats = responses[-1].stats
        assert stats is not None, "the last response has statistics"
        read = stats.prompt_tokens - stats.cached_tokens
        print(json.dumps(answer), f"({read} of {stats.prompt_tokens} prompt tokens read)")


if __name__ == "__main__":
    main()
