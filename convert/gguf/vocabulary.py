"""The vocabulary of a GGUF file: tokens, their kinds, and which of them end an answer."""

from typing import NamedTuple

from mlx_eagle.convert.gguf.metadata import Metadata
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import quote, quote_value

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Control tokens that end an answer, by their text, as llama.cpp knows them: files name one or two.
_ENDINGS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"),
    *("<|eom_id|>", "</s>", "<eos>", "<EOT>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
)
_ROLES = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "pad": "padding",
    "eot": "eot",
    "eom": "eom",
}


class Vocabulary(NamedTuple):
    """Tokens, and what is known about them.

    Attributes:
        tokens: their texts, by id.
        kinds: what they are: `NORMAL`, `CONTROL` and so on.
        roles: ids of tokens with a role: "bos", "eos", "unk", "pad", "eot", "eom".
        endings: ids that end an answer, the one that the file names first.
    """

    tokens: list[str]
    kinds: list[int]
    roles: dict[str, int]
    endings: list[int]

    def text(self, role: str) -> str | None:
        """Return the text of a token with a role; None if there is none."""
        return self.tokens[self.roles[role]] if role in self.roles else None

    def of_kind(self, *kinds: int) -> list[str]:
        """Return the tokens of some kinds, in order."""
        pairs = zip(self.tokens, self.kinds, strict=True)
        return [token for token, kind in pairs if kind in kinds]

    @property
    def ids(self) -> dict[str, int]:
        """Ids by token."""
        return {token: number for number, token in enumerate(self.tokens)}


def read_vocabulary(metadata: Metadata, n_rows: int) -> Vocabulary:
    """Return the vocabulary of a file.

    Args:
        metadata: of the file.
        n_rows: of the embedding.

    Raises:
        CheckpointError: if it is malformed, ambiguous or larger than the embedding.
    """
    tokens = metadata.items("tokenizer.ggml.tokens", str)
    kinds = metadata.items("tokenizer.ggml.token_type", int, [NORMAL] * len(tokens))
    if not 0 < len(tokens) <= n_rows or len(kinds) != len(tokens):
        raise CheckpointError(
            f"its vocabulary has {len(tokens)} tokens and {len(kinds)} kinds of them, for an "
            f"embedding of {n_rows} rows"
        )
    found = Vocabulary(tokens, kinds, {}, [])
    if len(found.ids) != len(tokens):
        twice = next(token for number, token in enumerate(tokens) if found.ids[token] != number)
        raise CheckpointError(f"its vocabulary has the token {quote(twice)} twice")
    roles = {role: _id(metadata, name, len(tokens)) for role, name in _ROLES.items()}
    found = found._replace(roles={role: n for role, n in roles.items() if n is not None})
    return found._replace(endings=_endings(found))


def _id(metadata: Metadata, name: str, n_tokens: int) -> int | None:
    """Return the id of a token with a role; None if there is none."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.values.get(key)
    if value is None or value == 0xFFFFFFFF:  # -1 in 32 bits: llama.cpp's word for none
        return None
    if type(value) is not int or not 0 <= value < n_tokens:
        raise CheckpointError(f"its {key} is {quote_value(value)}, not one of {n_tokens} tokens")
    return value


def _endings(vocabulary: Vocabulary) -> list[int]:
    """Return the ids that end an answer."""
    named = [vocabulary.roles[role] for role in ("eos", "eot", "eom") if role in vocabulary.roles]
    pairs = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    known = [n for n, (text, kind) in enumerate(pairs) if kind == CONTROL and text in _ENDINGS]
    return list(dict.fromkeys(named + known))
