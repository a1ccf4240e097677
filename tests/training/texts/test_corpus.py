"""Texts from files: what is held out, what the target answers, and what is said of the rest."""

import json
from pathlib import Path
from typing import Any

import pytest

from chat_templates import demo_tokenizer
from mlx_eagle.errors import EagleError
from mlx_eagle.session.prompt import encode
from mlx_eagle.target.load import load_target
from mlx_eagle.training.options import DataOptions
from mlx_eagle.training.texts.corpus import Corpus, read_corpus
from mlx_eagle.training.texts.target_answers import Respondent
from training_files import write_conversations, write_tiny_target

N = 8


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A tiny random target and its tokenizer."""
    folder = write_tiny_target(tmp_path_factory.mktemp("corpus") / "target")
    target, tokenizer = load_target(folder)
    return target.network, tokenizer


def read(
    loaded: tuple[Any, Any], files: list[Path], folder: Path, *heldout: Path, **options: Any
) -> Corpus:
    kept = {"answer_tokens": 4, "heldout": 0.25} | options
    respondent = Respondent(*loaded, "tiny", 256, DataOptions(**kept))
    return read_corpus(files, heldout, respondent, folder, lambda *_: None)


def trained_text(loaded: tuple[Any, Any], corpus: Corpus) -> list[str]:
    """What is trained on of each text, as text."""
    tokens = [example.tokens[example.trained].tolist() for example in corpus.train]
    return [loaded[1].decode(ids) for ids in tokens]


def test_given_answers_are_trained_on_as_they_are(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    file = write_conversations(tmp_path / "texts.jsonl", N)
    corpus = read(loaded, [file], tmp_path)
    assert len(corpus.train) + len(corpus.heldout) == N
    assert corpus.heldout, "a quarter of eight questions"
    assert all(text.startswith("It copies ") for text in trained_text(loaded, corpus))
    assert not (tmp_path / "answers-train.jsonl").exists()


def test_the_target_answers_what_has_no_answer_and_only_that(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    given = write_conversations(tmp_path / "given.jsonl", N)
    asked = write_conversations(tmp_path / "asked.jsonl", 3, answered=False)
    corpus = read(loaded, [given, asked], tmp_path, heldout=0.0)
    texts = trained_text(loaded, corpus)
    assert sum(text.startswith("It copies ") for text in texts) == N
    own = [json.loads(line) for line in (tmp_path / "answers-train.jsonl").read_text().splitlines()]
    prompts = {tuple(encode(loaded[1], line["messages"][:1])) for line in own}
    assert len(prompts) == 3
    for prompt in prompts:  # the target's tokens stand where it wrote them
        starts = [e for e in corpus.train if tuple(e.tokens[: len(prompt)]) == prompt]
        assert any(
            not e.trained[: len(prompt)].any() and e.trained[len(prompt) :].all() for e in starts
        )


def test_the_target_and_the_texts_are_given_the_tools_of_a_question(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    template = "{{ tools | tojson if tools }}{% for m in messages %} {{ m.content }}{% endfor %}"
    tokenizer = demo_tokenizer(template)
    schema = {"type": "function", "function": {"name": "add", "parameters": {}}}
    asked = {"messages": [{"role": "user", "content": "1 and 1?"}]}
    file = tmp_path / "asked.jsonl"
    rows = [asked | {"tools": [schema]}, {"messages": [{"role": "user", "content": "Why?"}]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = read((loaded[0], tokenizer), [file], tmp_path, heldout=0.0)
    texts = [tokenizer.decode(text.tokens.tolist()) for text in corpus.train]
    assert ['"name": "add"' in text for text in texts] == [True, False]


def test_given_answers_are_kept_though_a_last_question_has_none(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    roles = ("user", "assistant", "user")
    said = ("What does os do?", "It copies os to a file.", "And re?")
    messages = [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"messages": messages}) + "\n")
    [text] = trained_text(loaded, read(loaded, [file], tmp_path))
    assert text.startswith("It copies os to a file.")
    assert not (tmp_path / "answers-train.jsonl").exists()


def test_the_target_can_answer_everything_anew(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    file = write_conversations(tmp_path / "texts.jsonl", N)
    corpus = read(loaded, [file], tmp_path, answers="target")
    assert not any(text.startswith("It copies ") for text in trained_text(loaded, corpus))
    assert any("the target wrote" in remark for remark in corpus.remarks)


def test_everything_can_be_trained_on_whoever_answers(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    given = write_conversations(tmp_path / "given.jsonl", 2)
    asked = write_conversations(tmp_path / "asked.jsonl", 3, answered=False)
    corpus = read(loaded, [given, asked], tmp_path, heldout=0.0, train_on="all")
    assert len(corpus.train) == 5 and all(text.trained.all() for text in corpus.train)


def test_other_files_can_be_held_out(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    train = write_conversations(tmp_path / "train.jsonl", N)
    heldout = write_conversations(tmp_path / "heldout.jsonl", 3)
    corpus = read(loaded, [train], tmp_path, heldout)
    assert (len(corpus.train), len(corpus.heldout)) == (N - 3, 3)
    assert "train: 3 conversations ask what is held out: left out" in corpus.remarks
    with pytest.raises(EagleError, match="all conversations of --data ask, first or later"):
        read(loaded, [heldout], tmp_path, train)


def test_repeats_and_cuts_are_told(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    file = write_conversations(tmp_path / "texts.jsonl", 2)
    long = {
        "messages": [
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "because " * 300},
        ]
    }
    file.write_text(file.read_text() * 2 + json.dumps(long) + "\n")
    corpus = read(loaded, [file], tmp_path, heldout=0.0)
    assert "2 conversations repeat others: left out" in corpus.remarks
    assert any(
        "1 conversations are longer than the target's context of 256 tokens: cut" in remark
        for remark in corpus.remarks
    )
    assert max(len(example.tokens) for example in corpus.train) == 256


def test_questions_alone_are_nothing_to_train_on(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    file = write_conversations(tmp_path / "asked.jsonl", 3, answered=False)
    with pytest.raises(EagleError, match="nothing is left to train on.* --answers target"):
        read(loaded, [file], tmp_path, answers="given")


def test_conversations_that_cannot_be_used_are_left_out_and_the_first_are_named(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    file = write_conversations(tmp_path / "texts.jsonl", 2)
    file.write_text(file.read_text() + '{"text": 5}\n' * 4)
    corpus = read(loaded, [file], tmp_path, heldout=0.0)
    assert len(corpus.train) == 2
    assert corpus.remarks[0] == "data: 4 conversations cannot be used: left out"
    places = [remark.split(": ")[1] for remark in corpus.remarks[1:]]
    assert places == [f"{file}:{n}" for n in (3, 4, 5)]


def test_conversations_that_the_template_refuses_are_left_out_unless_all_are(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    refusal = "{% if 'part1' in m.content %}{{ raise_exception('no') }}{% endif %}"
    template = f"{{% for m in messages %}}{refusal} {{{{ m.content }}}}\n{{% endfor %}}"
    tokenizer = demo_tokenizer(template)
    file = write_conversations(tmp_path / "texts.jsonl", 2)
    corpus = read((loaded[0], tokenizer), [file], tmp_path, heldout=0.0)
    assert len(corpus.train) == 1
    assert corpus.remarks[0] == "train: 1 conversations cannot be used: left out"
    assert corpus.remarks[1].startswith(f"train: {file}:2: the target's chat template refuses")
    file.write_text(file.read_text().splitlines()[1])
    with pytest.raises(EagleError, match=r"texts.jsonl:1: the target's chat template refuses"):
        read((loaded[0], tokenizer), [file], tmp_path, heldout=0.0)
