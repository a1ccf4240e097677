"""Tokenizers made of a file's metadata, against transformers' patterns and worked examples."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from gguf_files import PAIRS, TEMPLATE, TOKENS
from mlx_eagle.convert.gguf.metadata import Metadata
from mlx_eagle.convert.gguf.splits import SPLITS
from mlx_eagle.convert.gguf.tokenizer import write_tokenizer
from mlx_eagle.convert.gguf.vocabulary import read_vocabulary
from mlx_eagle.errors import CheckpointError

TEXT = (
    "It's 12345 o'clock\u2014in caf\u00e9 No.7:\n\n  HelloWorld said <|im_end|>   x=[1,22]\t"
    "\u65e5\u672c\u8a9e!\r\n"
)
GLOSSARY = Path(__file__).resolve().parents[3] / "docs" / "glossary.md"
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))]
WORDS = ["\u2581", "a", "b", "n", "an", "\u2581a", "ban", "ana", "\u2581an", "\u2581ban", "<end>"]


def byte_level(**changes: Any) -> dict[str, Any]:
    """The metadata of a vocabulary of all bytes with a few merges."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [*PAIRS, "1 2", "12 3", "\u010a \u010a"]
    tokens = [*letters, *(pair.replace(" ", "") for pair in pairs), "<|im_end|>", "<think>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 4],
        "tokenizer.ggml.merges": pairs,
        "tokenizer.ggml.eos_token_id": len(tokens) - 2,
        "tokenizer.chat_template": TEMPLATE,
        **changes,
    }


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """The metadata of a sentencepiece vocabulary: the higher a score, the earlier the merge."""
    tokens = [*PIECES, *WORDS]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(WORDS) - 1) + [4],
        "tokenizer.ggml.scores": [0.0] * len(PIECES) + [-float(n) for n in range(len(WORDS))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **changes,
    }


def written(values: dict[str, Any], folder: Path, architecture: str = "llama") -> Any:
    """The tokenizer as transformers loads it from what is written."""
    metadata = Metadata(values, architecture)
    vocabulary = read_vocabulary(metadata, 100_000)
    write_tokenizer(metadata, vocabulary, folder, max_length=64)
    (folder / "config.json").write_text(json.dumps({"model_type": architecture}))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("pre", SPLITS)
def test_text_survives_every_way_of_cutting(pre: str, tmp_path: Path) -> None:
    tokenizer = written(byte_level(**{"tokenizer.ggml.pre": pre}), tmp_path)
    ids = tokenizer.encode(TEXT, add_special_tokens=False)
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.eos_token_id in ids


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "qwen3_moe", "phi3"])
def test_classes_of_transformers_do_not_get_in_the_way(architecture: str, tmp_path: Path) -> None:
    """For some model types they read tokens and merges alone and cut texts as they are used to."""
    values = byte_level(**{"tokenizer.ggml.pre": "qwen2"})
    tokenizer = written(values, tmp_path, architecture)
    assert tokenizer.encode(TEXT) == written(values, tmp_path).encode(TEXT)
    assert tokenizer.tokenize("<think>the<|im_end|>") == ["<think>", "the", "<|im_end|>"]


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_words_are_cut_as_transformers_cuts_them(pre: str, tmp_path: Path) -> None:
    theirs = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    pattern = theirs.GGUF_PRE_TOKENIZER_SPLITS[pre]
    ours = written(byte_level(**{"tokenizer.ggml.pre": pre}), tmp_path).backend_tokenizer
    cut = pre_tokenizers.Split(Regex(pattern), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    expected = pre_tokenizers.Sequence([cut, bytes_of]).pre_tokenize_str(TEXT)
    assert ours.pre_tokenizer.pre_tokenize_str(TEXT) == expected


@pytest.mark.parametrize(
    ("pre", "digits"),
    [
        ("smollm", ["1", "2", "3"]),
        ("gpt-2", ["123"]),
        ("llama-bpe", ["123"]),
        ("qwen2", ["1", "2", "3"]),
    ],
)
def test_digits_are_cut_as_the_name_says(pre: str, digits: list[str], tmp_path: Path) -> None:
    tokenizer = written(byte_level(**{"tokenizer.ggml.pre": pre}), tmp_path)
    assert tokenizer.tokenize("123") == digits


def test_unknown_way_of_cutting_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cuts text as 'deepseek-coder', which is not known"):
        written(byte_level(**{"tokenizer.ggml.pre": "deepseek-coder"}), tmp_path)


def test_unknown_kind_of_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="of the kind 'rwkv'; .* gpt2, llama"):
        written(byte_level(**{"tokenizer.ggml.model": "rwkv"}), tmp_path)


def test_sentencepiece_merges_by_score_and_falls_back_to_bytes(tmp_path: Path) -> None:
    """Of "a banana", a space before it: "an" first, then "_a", "ban", and "ana" of the rest."""
    tokenizer = written(sentencepiece(), tmp_path)
    assert tokenizer.tokenize("a banana") == ["\u2581a", "\u2581ban", "ana"]
    assert tokenizer.tokenize("\u20ac") == ["\u2581", "<0xE2>", "<0x82>", "<0xAC>"]
    assert tokenizer.encode("a")[0] == tokenizer.bos_token_id
    assert (
        tokenizer.decode(tokenizer.encode("a ban\u20ac", add_special_tokens=False)) == "a ban\u20ac"
    )


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model of sentencepiece's own, trained with Llama's settings."""
    library = pytest.importorskip("sentencepiece", reason="sentencepiece is the oracle")
    stem = tmp_path_factory.mktemp("sentencepiece") / "x"
    library.SentencePieceTrainer.train(
        input=str(GLOSSARY),
        model_prefix=str(stem),
        vocab_size=700,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return library.SentencePieceProcessor(model_file=f"{stem}.model")


def test_sentencepiece_itself_reads_the_same_tokens(processor: Any, tmp_path: Path) -> None:
    ids = range(processor.get_piece_size())
    kinds = [1 + processor.is_unknown(n) + 2 * processor.is_control(n) for n in ids]
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(n) for n in ids],
        "tokenizer.ggml.scores": [processor.get_score(n) for n in ids],
        "tokenizer.ggml.token_type": [6 if processor.is_byte(n) else kinds[n] for n in ids],
        "tokenizer.ggml.bos_token_id": 1,
    }
    tokenizer = written(values, tmp_path)
    for text in (*GLOSSARY.read_text().splitlines()[:60], TEXT, "  two   spaces ", "\u65e5\u672c"):
        found = tokenizer.encode(text, add_special_tokens=False)
        assert found == processor.encode(text)
        assert tokenizer.decode(found) == processor.decode(found)


def test_user_defined_token_is_found_whole(tmp_path: Path) -> None:
    assert "<end>" in written(sentencepiece(), tmp_path).tokenize("a<end>b")


@pytest.mark.parametrize(("flag", "n_more"), [(True, 1), (False, 0)])
def test_texts_begin_as_the_file_says(flag: bool, n_more: int, tmp_path: Path) -> None:
    tokenizer = written(sentencepiece(**{"tokenizer.ggml.add_bos_token": flag}), tmp_path)
    plain = tokenizer.encode("ban", add_special_tokens=False)
    assert len(tokenizer.encode("ban")) == len(plain) + n_more


def test_gemma_has_no_space_before_a_text_and_merges_by_place(tmp_path: Path) -> None:
    """Its scores say nothing; by its places "an" comes first, then "ban"."""
    scores = {"tokenizer.ggml.scores": [0.0] * (len(PIECES) + len(WORDS))}
    tokenizer = written(sentencepiece(**scores), tmp_path, "gemma2")
    assert tokenizer.tokenize("banana") == ["ban", "ana"]


def test_chat_template_and_ends_of_answers_come_from_the_file(tmp_path: Path) -> None:
    tokenizer = written(byte_level(), tmp_path)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert chat == "<|im_start|>a<|im_end|>"
    tokens = [*TOKENS, "<|eot_id|>"]
    kinds = [1] * (len(tokens) - 2) + [3, 3]
    values = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    found = read_vocabulary(Metadata({**values, "tokenizer.ggml.eos_token_id": 3}, "llama"), 100)
    assert found.endings == [3, len(tokens) - 2, len(tokens) - 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "2 tokens and .* kinds"),
        ({"tokenizer.ggml.merges": ["ab"]}, "a merge that is not two tokens"),
        ({"tokenizer.ggml.merges": ["zz yy"]}, "is malformed"),
        ({"tokenizer.ggml.eos_token_id": 1 << 20}, "not one of"),
        ({"tokenizer.ggml.tokens": 7}, "not a list of str"),
        ({"tokenizer.chat_template": 7}, "chat_template is 7, not a text"),
    ],
)
def test_malformed_vocabulary_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        written(byte_level(**changes), tmp_path)


def test_token_that_comes_twice_is_refused(tmp_path: Path) -> None:
    values = byte_level()
    values["tokenizer.ggml.tokens"][5] = values["tokenizer.ggml.tokens"][4]
    with pytest.raises(CheckpointError, match="twice"):
        written(values, tmp_path)


def test_vocabulary_larger_than_the_embedding_is_refused() -> None:
    with pytest.raises(CheckpointError, match="for an embedding of 10 rows"):
        read_vocabulary(Metadata(byte_level(), "llama"), 10)
