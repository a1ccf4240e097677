"""No question stands on both sides, new data moves nobody, and repeats go once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.errors import EagleError
from mlx_eagle.training.texts.conversations import Conversation
from mlx_eagle.training.texts.split import split, without_questions_of, without_repeats


def conversation(*said: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple({"role": roles[n % 2], "content": s} for n, s in enumerate(said)))


def many(n: int) -> list[Conversation]:
    return [conversation(f"question {i}", f"answer {i}") for i in range(n)]


CONVERSATIONS = st.lists(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4).map(
        lambda said: conversation(*said)
    ),
    min_size=1,
    max_size=30,
)


@given(CONVERSATIONS, st.floats(0, 0.5), st.integers(0, 9))
def test_every_conversation_is_on_one_side_and_no_question_on_both(
    conversations: list[Conversation], share: float, seed: int
) -> None:
    found = split(conversations, share, seed)
    unique = list(dict.fromkeys(map(str, conversations)))
    kept = list(map(str, found.train + found.heldout))
    assert set(kept) <= set(unique)
    assert len(kept) == len(set(kept)) == len(unique) - found.n_asked
    assert found.n_repeated == len(conversations) - len(unique)
    asked = [{c.messages[0]["content"] for c in side} for side in (found.train, found.heldout)]
    assert not asked[0] & asked[1]
    assert found.train
    assert bool(found.heldout) == (share > 0 and len(asked[0] | asked[1]) > 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_new_data_moves_nobody(seed: int) -> None:
    small, large = (split(many(n), 0.1, seed) for n in (200, 2000))
    asked = {str(c) for c in many(200)}
    assert {str(c) for c in large.heldout} & asked == {str(c) for c in small.heldout}
    assert {str(c) for c in large.train} & asked == {str(c) for c in small.train}


def test_the_share_is_about_what_was_asked_for_and_the_seed_decides_who() -> None:
    first, again, other = (split(many(2000), 0.1, seed) for seed in (0, 0, 1))
    assert 150 < len(first.heldout) < 250  # 3.7 standard deviations
    assert first == again
    assert first.heldout != other.heldout


def test_order_is_kept() -> None:
    found = split(many(50), 0.3, 0)
    places = {str(c): n for n, c in enumerate(many(50))}
    for side in (found.train, found.heldout):
        order = [places[str(c)] for c in side]
        assert order == sorted(order)


def test_a_question_alone_falls_on_the_side_of_its_answers() -> None:
    questions = [conversation(f"question  {i}\n") for i in range(200)]
    answered, alone = split(many(200), 0.2, 0), split(questions, 0.2, 0)
    held = [[c.messages[0]["content"].split() for c in s.heldout] for s in (answered, alone)]
    assert held[0] == held[1]


def test_a_system_prompt_does_not_decide() -> None:
    system = {"role": "system", "content": "S"}
    conversations = many(200) + [Conversation((system, *c.messages)) for c in many(200)]
    found = split(conversations, 0.2, 0)
    assert len(found.heldout) % 2 == 0
    assert {c.messages[-1]["content"] for c in found.heldout[: len(found.heldout) // 2]} == {
        c.messages[-1]["content"] for c in found.heldout[len(found.heldout) // 2 :]
    }


def test_what_others_ask_is_left_out_whatever_is_answered() -> None:
    text = Conversation(text="a b")
    conversations = [
        conversation("one?", "1"),
        conversation("two?", "2"),
        conversation("two?", "II", "three?"),
        text,
    ]
    assert without_questions_of(conversations, [conversation("two? ")]) == [conversations[0], text]
    assert (
        without_questions_of(conversations, [conversation("three?", "3"), text])
        == conversations[:2]
    )


def test_capitals_and_spaces_make_no_other_question() -> None:
    small, large = conversation("What is  a ring?", "1"), conversation("what is a Ring?\n", "2")
    assert without_questions_of([small], [large]) == []
    pairs = [f(f"Question {i}") for i in range(50) for f in (conversation, shouted)]
    found = split(pairs, 0.3, 0)
    sides = [{c.messages[0]["content"].lower() for c in s} for s in (found.train, found.heldout)]
    assert not sides[0] & sides[1]
    assert len(found.heldout) % 2 == 0 < len(found.heldout)


def shouted(question: str) -> Conversation:
    return conversation(question.upper())


LATER = "And what is a field?"


@pytest.mark.parametrize(
    ("trained", "is_kept"),
    [
        (("Other?", "1", LATER), False),
        ((LATER.lower(),), False),
        (("Other?", "1", "What is a ring?"), False),
        (("Other?", "1", "And what is a module?"), True),
        (("Other?", "1", "Go on."), True),
        (("Go on.",), True),
    ],
)
def test_what_is_held_out_is_not_asked_later_either(
    trained: tuple[str, ...], is_kept: bool
) -> None:
    heldout = [conversation("What is a ring?", "1", LATER, "2", "Go on.")]
    given = [conversation(*trained)]
    assert without_questions_of(given, heldout) == (given if is_kept else [])


def test_scripts_without_spaces_have_questions_too() -> None:
    heldout = [conversation("什么是环?", "1", "什么是域,它和环有什么不同之处?")]
    for asked in ("什么是环?", "什么是域,它和环有什么不同之处?"):
        assert without_questions_of([conversation("你好", "1", asked)], heldout) == []
    other = [conversation("你好", "1", "什么是模?")]
    assert without_questions_of(other, heldout) == other


def test_something_is_held_out_where_later_turns_are_the_same_everywhere() -> None:
    conversations = [
        conversation(f"first question {i}?", "1", f"and what about case {j}?")
        for i in range(10)
        for j in range(20)
    ]
    found = split(conversations, 0.2, 0)
    assert found.heldout and found.train
    sides = [{c.messages[0]["content"] for c in side} for side in (found.train, found.heldout)]
    assert not sides[0] & sides[1]


def test_a_turn_that_follows_upon_many_questions_asks_nothing_of_its_own() -> None:
    usual = "Now say it in one sentence."
    few, many_ = ([conversation(f"q{i}", "a", usual) for i in range(n)] for n in (10, 11))
    assert without_questions_of(few[1:], few[:1]) == []
    assert without_questions_of(many_[1:], many_[:1]) == many_[1:]


def test_a_share_that_is_held_out_is_not_asked_in_what_is_trained_on() -> None:
    pairs = [
        conversation(*said)
        for i in range(40)
        for said in ((f"first {i}", "a", f"what is the number {i}?"), (f"what is the number {i}?",))
    ]
    found = split(pairs, 0.2, 0)
    asked, held = (
        {m["content"] for c in side for m in c.messages if m["role"] == "user"}
        for side in (found.train, found.heldout)
    )
    assert found.heldout and not asked & held
    assert found.n_asked == len(pairs) - len(found.train) - len(found.heldout) > 0


def test_spaces_make_no_difference_and_everything_else_does() -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    conversations = [
        conversation("a b", "c"),
        conversation("a  b\n", " c"),
        conversation("a b", "d"),
        conversation("ab", "c"),
        conversation("a b", "c")._replace(tools=(tool,)),
        Conversation(text="a b"),
        Conversation(text="a\nb", where="elsewhere"),
    ]
    unique, n_repeated = without_repeats(conversations)
    assert unique == [conversations[0], *conversations[2:6]]
    assert n_repeated == 2


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(EagleError, match="nothing is left to train on"):
        split([], 0.1, 0)


def test_one_question_is_trained_on_and_nothing_held_out() -> None:
    found = split([conversation("a", "b"), conversation("a", "c")], 0.5, 0)
    assert (len(found.train), found.heldout) == (2, [])
