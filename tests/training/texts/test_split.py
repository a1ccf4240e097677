"""No question stands on both sides, new data moves nobody, and repeats go once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.errors import EagleError
from mlx_eagle.training.texts.conversations import Conversation
from mlx_eagle.training.texts.split import split, without_questions_of, without_repeats


def talk(*said: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple({"role": roles[n % 2], "content": s} for n, s in enumerate(said)))


def many(n: int) -> list[Conversation]:
    return [talk(f"question {i}", f"answer {i}") for i in range(n)]


TALKS = st.lists(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4).map(lambda said: talk(*said)),
    min_size=1,
    max_size=30,
)


@given(TALKS, st.floats(0, 0.5), st.integers(0, 9))
def test_every_conversation_is_on_one_side_and_no_question_on_both(
    talks: list[Conversation], share: float, seed: int
) -> None:
    found = split(talks, share, seed)
    unique = list(dict.fromkeys(map(str, talks)))
    assert sorted(map(str, found.train + found.heldout)) == sorted(unique)
    assert found.n_repeated == len(talks) - len(unique)
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
    questions = [talk(f"question  {i}\n") for i in range(200)]
    answered, alone = split(many(200), 0.2, 0), split(questions, 0.2, 0)
    held = [[c.messages[0]["content"].split() for c in s.heldout] for s in (answered, alone)]
    assert held[0] == held[1]


def test_a_system_prompt_does_not_decide() -> None:
    system = {"role": "system", "content": "S"}
    talks = many(200) + [Conversation((system, *c.messages)) for c in many(200)]
    found = split(talks, 0.2, 0)
    assert len(found.heldout) % 2 == 0
    assert {c.messages[-1]["content"] for c in found.heldout[: len(found.heldout) // 2]} == {
        c.messages[-1]["content"] for c in found.heldout[len(found.heldout) // 2 :]
    }


def test_what_others_ask_is_left_out_whatever_is_answered() -> None:
    text = Conversation(text="a b")
    talks = [talk("one?", "1"), talk("two?", "2"), talk("two?", "II", "three?"), text]
    assert without_questions_of(talks, [talk("two? ")]) == [talks[0], text]
    assert without_questions_of(talks, [talk("three?", "3"), text]) == talks[:3]


def test_spaces_make_no_difference_and_everything_else_does() -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    talks = [
        talk("a b", "c"),
        talk("a  b\n", " c"),
        talk("a b", "d"),
        talk("ab", "c"),
        talk("a b", "c")._replace(tools=(tool,)),
        Conversation(text="a b"),
        Conversation(text="a\nb", where="elsewhere"),
    ]
    unique, n_repeated = without_repeats(talks)
    assert unique == [talks[0], *talks[2:6]]
    assert n_repeated == 2


def test_nothing_to_train_on_is_an_error() -> None:
    with pytest.raises(EagleError, match="nothing is left to train on"):
        split([], 0.1, 0)


def test_one_question_is_trained_on_and_nothing_held_out() -> None:
    found = split([talk("a", "b"), talk("a", "c")], 0.5, 0)
    assert (len(found.train), found.heldout) == (2, [])
