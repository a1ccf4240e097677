"""Streaming text: whole characters, exact stop strings."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from doubles import ByteTokenizer
from mlx_eagle.session.detokenize import TextStream
from mlx_eagle.target.tokenizer import mend_decoder


def stream(text: str, stop: tuple[str, ...]) -> tuple[list[str], bool]:
    """The segments shown for `text`, up to the stop, and whether one was found."""
    out, segments = TextStream(ByteTokenizer(), stop), []
    for byte in text.encode():
        segments.append(out.add(byte))
        if out.stopped:
            break
    return [*segments, out.finish()], out.stopped


def test_a_stop_string_over_several_tokens_is_never_shown() -> None:
    segments, stopped = stream("one END two", ("END",))
    assert "".join(segments) == "one "
    assert stopped
    assert not any("E" in segment for segment in segments)


def test_what_only_looked_like_a_stop_string_is_shown_after_all() -> None:
    segments, stopped = stream("ENTER EN", ("END",))
    assert "".join(segments) == "ENTER EN"
    assert not stopped


def test_the_first_of_several_stop_strings_wins() -> None:
    segments, _ = stream("ab<x>cd</y>", ("</y>", "<x>"))
    assert "".join(segments) == "ab"


@given(
    st.text(st.sampled_from("ab\n é漢🙂"), max_size=30),
    st.lists(st.text(st.sampled_from("ab é🙂"), min_size=1, max_size=4), max_size=3),
)
def test_the_text_is_what_plain_searching_gives(text: str, stop: list[str]) -> None:
    segments, stopped = stream(text, tuple(stop))
    ends = [text.find(s) + len(s) for s in stop if s in text]
    assert stopped == bool(ends)
    if not ends:
        assert "".join(segments) == text
    else:
        shown = text[: min(ends)]
        assert "".join(segments) == shown[: min(shown.find(s) for s in stop if s in shown)]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20))
def test_no_segment_holds_half_a_character(text: str) -> None:
    segments, _ = stream(text, ())
    assert "".join(segments) == text
    assert not any("\ufffd" in segment for segment in segments)


WORDS = ("the", "a", "don", "'t", ".", ",", "Zürich", "漢字", "🙂", "  ", "x=1")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = pre_tokenizers.ByteLevel.alphabet()


def byte_level(decoder: Any) -> PreTrainedTokenizerFast:
    """Bytes written as letters, as GPT-2 has them; words with and without the space before them."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [split.pre_tokenize_str(text)[0][0] for w in WORDS for text in (w, f" {w}")]
    vocabulary = dict.fromkeys([*sorted(LETTERS), *words])
    ids = {piece: number for number, piece in enumerate(vocabulary)}
    return wrap(Tokenizer(models.BPE(ids, [])), decoder)


def sentencepiece(model: Any, decoder: Any) -> PreTrainedTokenizerFast:
    return wrap(Tokenizer(model), decoder)


def wrap(tokenizer: Tokenizer, decoder: Any) -> PreTrainedTokenizerFast:
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def llama_decoder() -> Any:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])


PIECES = ["<unk>", *BYTES, "▁", *(text for w in WORDS for text in (w, f"▁{w}"))]
TOKENIZERS = {
    "byte-level": lambda: byte_level(decoders.ByteLevel()),
    "byte-level, decoder of sentencepiece": lambda: byte_level(llama_decoder()),
    "sentencepiece with byte fallback": lambda: sentencepiece(
        models.BPE({p: n for n, p in enumerate(PIECES)}, [], unk_token="<unk>", byte_fallback=True),
        llama_decoder(),
    ),
    "unigram": lambda: sentencepiece(
        models.Unigram([(piece, -1.0) for piece in PIECES], 0, byte_fallback=True),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    ),
    "word pieces": lambda: sentencepiece(
        models.WordPiece({p: n for n, p in enumerate(["[UNK]", "a", "##b", ".", "n't", "漢"])}),
        decoders.WordPiece(cleanup=False),
    ),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_b2_the_pieces_of_random_tokens_join_to_what_decoding_them_gives(
    name: str, is_quick: bool
) -> None:
    tokenizer, rng = TOKENIZERS[name](), random.Random(0)
    mend_decoder(tokenizer)
    n_tokens = len(tokenizer)
    for _ in range(300 if is_quick else 2000):
        ids = [rng.randrange(n_tokens) for _ in range(rng.randrange(1, 14))]
        out = TextStream(tokenizer)
        pieces = [*map(out.add, ids), out.finish()]
        whole = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert "".join(pieces) == whole, ids


def test_b3_a_byte_level_vocabulary_is_decoded_as_bytes_whatever_its_file_says() -> None:
    tokenizer = byte_level(llama_decoder())
    ids = tokenizer.convert_tokens_to_ids(["the", "\u0120a", "\u0120x=1"])
    assert "\u0120" in tokenizer.decode(ids)
    mend_decoder(tokenizer)
    assert tokenizer.decode(ids) == "the a x=1"
    right = TOKENIZERS["sentencepiece with byte fallback"]()
    before = str(right.backend_tokenizer.decoder)
    mend_decoder(right)
    assert str(right.backend_tokenizer.decoder) == before
