"""The tokenizer of a GGUF file, as tokenizer.json and tokenizer_config.json.

Two models are made: "gpt2", byte-level pairs whose merges the file lists, and "llama", which is
sentencepiece's pairs, whose merges follow from the scores of its tokens. Others are refused.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from mlx_eagle.convert.gguf.metadata import Metadata
from mlx_eagle.convert.gguf.splits import Split, find_split, normalizer, pre_tokenizer
from mlx_eagle.convert.gguf.vocabulary import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Vocabulary
from mlx_eagle.errors import CheckpointError
from mlx_eagle.files.quoting import one_line, quote

_SPACE = "\u2581"  # how sentencepiece writes a space
MAX_PIECE = 256  # characters of a token that merges are looked for in
_GEMMAS = ("gemma2", "gemma3")
# Of phi-3's added tokens these alone leave spaces behind them where they are (as in llama.cpp).
_PHI3_PLAIN = ("<unk>", "<s>", "<|endoftext|>")


def write_tokenizer(
    metadata: Metadata, vocabulary: Vocabulary, folder: Path, *, max_length: int
) -> None:
    """Write the tokenizer of a file.

    Args:
        metadata: of the file.
        vocabulary: of the file.
        folder: to write to.
        max_length: tokens that the model was made for.

    Raises:
        CheckpointError: if it is malformed, or of a kind that is not known.
    """
    kind = metadata.text("tokenizer.ggml.model")
    if kind not in _MODELS:
        raise CheckpointError(
            f"its tokenizer is of the kind {quote(kind)}; those that are converted are "
            f"{', '.join(_MODELS)}"
        )
    try:
        tokenizer = _MODELS[kind](metadata, vocabulary)
        tokenizer.post_processor = _ends(metadata, vocabulary, kind)
        tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises nothing more special
        raise CheckpointError(f"its tokenizer is malformed: {one_line(error)}") from error
    settings = _settings(metadata, vocabulary, max_length) | _added_tokens(tokenizer)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _settings(metadata: Metadata, vocabulary: Vocabulary, max_length: int) -> dict[str, Any]:
    """Return what stands beside a tokenizer: tokens with a role, and the chat template."""
    roles = {f"{role}_token": vocabulary.text(role) for role in ("bos", "eos", "unk", "pad")}
    template = metadata.text("tokenizer.chat_template", "")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        **{role: text for role, text in roles.items() if text is not None},
        **({"chat_template": template} if template else {}),
    }


def _added_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return tokens that are found whole, as classes of transformers want them.

    For some types of models these read tokens and merges alone of tokenizer.json.
    """
    names = ("content", "lstrip", "rstrip", "single_word", "normalized", "special")
    tokens = tokenizer.get_added_tokens_decoder().items()
    return {"added_tokens_decoder": {n: {k: getattr(t, k) for k in names} for n, t in tokens}}


def _byte_level(metadata: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    """Return byte-level pairs."""
    split = _split(metadata)
    lines = metadata.items("tokenizer.ggml.merges", str)
    merges = [(line[:at], line[at + 1 :]) for line in lines if (at := line.find(" ", 1)) > 0]
    if len(merges) != len(lines):
        raise CheckpointError("its tokenizer has a merge that is not two tokens")
    model = models.BPE(vocabulary.ids, merges, ignore_merges=split.takes_whole_words)
    tokenizer = Tokenizer(model)
    cleaned = normalizer(split)
    if cleaned is not None:
        tokenizer.normalizer = cleaned
    tokenizer.pre_tokenizer = pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, vocabulary)
    return tokenizer


def _sentencepiece(metadata: Metadata, vocabulary: Vocabulary) -> Tokenizer:
    """Return sentencepiece's pairs, which fall back to bytes."""
    is_gemma = metadata.prefix in _GEMMAS
    if is_gemma:  # its tokens of several spaces stand in the file as spaces
        spelt = [t.replace(" ", _SPACE) if not t.strip(" ") else t for t in vocabulary.tokens]
        vocabulary = vocabulary._replace(tokens=spelt)
    has_prefix = metadata.flag("tokenizer.ggml.add_space_prefix", not is_gemma)
    unknown = vocabulary.of_kind(UNKNOWN)
    model = models.BPE(
        vocabulary.ids,
        _implied_merges(vocabulary, _scores(metadata, vocabulary, is_gemma)),
        unk_token=vocabulary.text("unk") or (unknown[0] if unknown else None),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", _SPACE)
    prefix = [normalizers.Prepend(_SPACE)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prefix, spaces])
    strip = [decoders.Strip(" ", 1, 0)] if has_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(tokenizer, vocabulary, strips=metadata.prefix == "phi3")
    return tokenizer


_MODELS: dict[str, Callable[[Metadata, Vocabulary], Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}


def _scores(metadata: Metadata, vocabulary: Vocabulary, by_place: bool) -> list[float]:
    """Return how early each token is merged: the higher the earlier.

    Gemma's scores do not tell: there a token comes the earlier, the smaller its id.
    """
    if by_place:
        return [-float(number) for number in range(len(vocabulary.tokens))]
    scores = metadata.items("tokenizer.ggml.scores", float)
    if len(scores) != len(vocabulary.tokens):
        raise CheckpointError(
            f"its vocabulary has {len(vocabulary.tokens)} tokens and {len(scores)} scores"
        )
    return scores


def _implied_merges(vocabulary: Vocabulary, scores: list[float]) -> list[tuple[str, str]]:
    """Return which pairs of tokens become a token, those with the highest score first.

    Of the pairs that become the same token, those with tokens of smaller ids come first.
    """
    ids = vocabulary.ids
    kinds = (NORMAL, USER_DEFINED)
    usable = {t for t, k in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if k in kinds}
    found = []
    for token in usable:
        for at in range(1, min(len(token), MAX_PIECE)):
            left, right = token[:at], token[at:]
            if left in usable and right in usable:
                found.append((-scores[ids[token]], ids[token], ids[left], ids[right]))
    tokens = vocabulary.tokens
    return [(tokens[left], tokens[right]) for *_, left, right in sorted(found)]


def _add_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary, *, strips: bool = False) -> None:
    """Let tokens that are no pieces of words be found whole, the special ones among them."""
    specials = [*vocabulary.of_kind(CONTROL), *vocabulary.of_kind(UNKNOWN)]
    tokenizer.add_special_tokens([_added(token, True, strips) for token in specials])
    plain = vocabulary.of_kind(USER_DEFINED)
    tokenizer.add_tokens([_added(token, False, strips) for token in plain])
    if tokenizer.get_vocab_size() != len(vocabulary.tokens):
        raise CheckpointError("its tokenizer has special tokens that its vocabulary lacks")


def _added(token: str, special: bool, strips: bool) -> AddedToken:
    """Return a token that is found whole."""
    takes_spaces = strips and token not in _PHI3_PLAIN
    return AddedToken(token, normalized=False, special=special, rstrip=takes_spaces)


def _ends(metadata: Metadata, vocabulary: Vocabulary, kind: str) -> Any:
    """Return what puts tokens before and behind a text."""
    begins = kind == "llama"
    if kind == "gpt2":
        begins = _split(metadata).begins
    first, last = (vocabulary.text(role) for role in ("bos", "eos"))
    begins = metadata.flag("tokenizer.ggml.add_bos_token", begins) and first is not None
    ends = metadata.flag("tokenizer.ggml.add_eos_token", False) and last is not None
    before, after = [first] if begins else [], [last] if ends else []
    used = [(text, vocabulary.ids[text]) for text in {*before, *after} if text is not None]
    return processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=used)


def _split(metadata: Metadata) -> Split:
    """Return how a text is cut."""
    return find_split(metadata.text("tokenizer.ggml.pre", "default"))
