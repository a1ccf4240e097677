"""Random JSON schemas, and what brings answers under them to an end."""

import random
from typing import Any

import numpy as np

VALUES = ["red", "grün", 3, -0.5, None, True, [1, {"a": "b"}], "a/b\n\"c'", "<|im_start|>"]


def random_schema(random: random.Random, depth: int = 0) -> dict[str, Any]:
    """A JSON schema of the kinds that people write, up to four levels deep."""
    low, least = random.randint(-300, 300), random.randint(0, 4)
    flat: list[dict[str, Any]] = [
        {"type": "string"},
        {"type": "string", "minLength": least, "maxLength": least + random.randint(0, 6)},
        {
            "type": "string",
            "pattern": random.choice(["^[a-z]{2,5}$", "^(éa|漢字)+$", "^[0-9]+A$"]),
        },
        {"type": "string", "format": random.choice(["uuid", "ipv4"])},
        {"type": "integer"},
        {"type": "integer", random.choice(["minimum", "exclusiveMaximum"]): low},
        {"type": "integer", "minimum": low, "maximum": low + random.randint(0, 2000)},
        {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 500},
        {"type": "number", **random.choice([{}, {"minimum": -1.5, "maximum": 2.25}])},
        {"type": random.choice(["null", "boolean", ["boolean", "null"]])},
        {"enum": random.sample(VALUES, k=random.randint(1, 4))},
    ]
    if depth == 3 or (depth and random.random() < 0.5):
        return random.choice(flat)
    names = random.sample(["name", "größe", "x", "is ok", 'a"b', "é", "id"], k=random.randint(1, 4))
    parts = [random_schema(random, depth + 1) for _ in names]
    kind = random.choice(["object", "object", "array", "anyOf"])
    if kind == "anyOf":
        return {"anyOf": parts}
    if kind == "array":
        most = {"maxItems": least + 2} if random.random() < 0.5 else {}
        return {"type": "array", "items": parts[0], "minItems": least // 2, **most}
    return {
        "type": "object",
        "properties": dict(zip(names, parts, strict=True)),
        "required": [name for name in names if random.random() < 0.6],
        "additionalProperties": random.random() < 0.1,
    }


def closing_bias(tokenizer: Any, n_tokens: int) -> np.ndarray:
    """A bias [n_tokens] towards the end of strings, objects and arrays, and of what is in them."""
    bias = np.zeros(n_tokens)
    for token in range(n_tokens):
        text = tokenizer.decode([token]).strip()
        if text and set(text) <= set('"}]'):
            bias[token] = 200 if text[0] == '"' else 100
        elif text in (",", "A"):  # what must come before the end in some of them
            bias[token] = 50
    bias[sorted(tokenizer.eos_token_ids)] = 300
    return bias
