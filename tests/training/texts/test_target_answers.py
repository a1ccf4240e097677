"""What a target writes in batches is what it writes alone, wherever a run was ended."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import generate_step

from cases import broad
from doubles import Letters, make_engine
from mlx_eagle.engine import Engine
from mlx_eagle.errors import EagleError
from mlx_eagle.heads.config import HeadConfig
from mlx_eagle.sampling.samplers import SeededSampler
from mlx_eagle.session.prompt import encode
from mlx_eagle.target.target import Target
from mlx_eagle.training.options import DataOptions
from mlx_eagle.training.texts.answer_file import Answered, origin_path, read_answers, tally
from mlx_eagle.training.texts.target_answers import Respondent, answer_seed, write_answers
from tiny_models import build_target

TOLD = "to tell it all over again, to those who were not there."
Conversations = list[list[dict[str, Any]]]


class OftenEnds(Letters):
    """Every fifth token ends an answer: a random target meets one of them now and then."""

    eos_token_ids = frozenset(range(1, 128, 5))


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def asked(n: int, turns: int = 1) -> Conversations:
    """Return conversations of different lengths."""
    return [[user(TOLD[(i + 5 * t) % 9 : 20 + 3 * i]) for t in range(turns)] for i in range(n)]


def respondent(network: nn.Module, *, seed: int = 0, **options: Any) -> Respondent:
    kept = {"answer_tokens": 12, "answers_at_once": 4} | options
    return Respondent(network, OftenEnds(), "tiny", 256, DataOptions(**kept), seed)


def alone(network: nn.Module, prompt: list[int], n_tokens: int) -> list[int]:
    """Return a greedy answer that mlx-lm generates for one conversation."""
    tokens = list[int]()
    for token, _ in generate_step(mx.array(prompt), network, max_tokens=n_tokens):
        tokens.append(int(token))
        if tokens[-1] in OftenEnds.eos_token_ids:
            break
    return tokens


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_target("llama")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def write(of: Respondent, conversations: Conversations, path: Path) -> list[Answered]:
    write_answers(of, conversations, path)
    return read_answers(path)


@pytest.mark.parametrize("architecture", ["llama", *map(broad, ["gemma3_text", "gpt_oss"])])
def test_every_turn_of_a_batch_is_answered_as_mlx_lm_answers_it_alone(
    architecture: str, path: Path, is_quick: bool
) -> None:
    network = build_target(architecture)
    n = 4 if is_quick and architecture == "gemma3_text" else 7
    found = write(respondent(network), asked(n, turns=2), path)
    answers = [answer for one in found for answer in one.answers]
    assert len(answers) >= n
    if architecture == "llama":
        assert {answer.is_cut for answer in answers} == {True, False}, "both kinds are tried"
        assert any(len(one.answers) == 2 for one in found), "second turns are tried"
    for one in found:
        for turn, answer in enumerate(one.answers):
            prompt = encode(OftenEnds(), one.messages[: 2 * turn + 1])
            assert answer.tokens == alone(network, prompt, 12)
            assert answer.is_cut == (answer.tokens[-1] not in OftenEnds.eos_token_ids)
            said = answer.tokens if answer.is_cut else answer.tokens[:-1]
            assert one.messages[2 * turn + 1]["content"] == OftenEnds().decode(said)


def test_a_model_that_an_engine_has_hooks_on_answers_the_same(path: Path) -> None:
    network = build_target("llama")
    bare = write(respondent(network), asked(5), path)
    target = Target(network, taps=(1, 2, 3))
    assert write(respondent(network), asked(5), path.with_name("hooked.jsonl")) == bare
    target.release()


def test_sampled_answers_are_those_of_a_session_with_the_seed_of_the_answer(
    network: nn.Module, head_config: HeadConfig, path: Path
) -> None:
    of = respondent(network, seed=5, answer_temperature=1.2)
    conversations = [*asked(5), asked(1)[0]]
    found = write(of, conversations, path)
    engine = make_engine(build_target("llama"), head_config, OftenEnds())
    assert sum(bool(one.answers) for one in found) >= 4
    for one in (one for one in found if one.answers):
        prompt = encode(OftenEnds(), conversations[one.place])
        sampling = {"temperature": 1.2, "seed": answer_seed(5, one.place, 0)}
        want = engine.generate(prompt, max_tokens=12, tree=None, **sampling).tokens
        assert one.answers[0].tokens[: len(want)] == want
    assert found[0].answers != found[-1].answers, "the same question, another draw"


@pytest.mark.parametrize(("temperature", "torn"), [broad(0.0, 0), broad(0.0, 40), (1.0, 1)])
def test_a_run_that_was_ended_anywhere_goes_on_as_if_nothing_had_been(
    network: nn.Module, path: Path, temperature: float, torn: int
) -> None:
    """It is ended by Ctrl-C twice, each time in the middle of a line that is being written."""
    of, conversations = respondent(network, answer_temperature=temperature), asked(9, turns=2)
    whole = write(of, conversations, path.with_name("whole.jsonl"))
    for n_finished in (3, 7):

        def interrupt(done: int, total: int, rate: float, last: int = n_finished) -> None:
            assert total == 9 and rate > 0
            if done == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_answers(of, conversations, path, interrupt)
        assert len(read_answers(path)) == n_finished
        if torn:
            path.write_bytes(path.read_bytes()[:-torn])
            assert len(read_answers(path)) == n_finished - 1
    assert write(of, conversations, path) == whole
    before = path.read_bytes()
    assert write(of, conversations, path) == whole and path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"answer_tokens": 13}, "answer_tokens 12 and not 13"),
        ({"answer_temperature": 0.5}, "answer_temperature 0.0 and not 0.5; .* remove the file"),
    ],
)
def test_other_options_are_not_mixed_in_but_named(
    network: nn.Module, path: Path, change: dict[str, Any], named: str
) -> None:
    write(respondent(network), asked(2), path)
    before = path.read_bytes()
    with pytest.raises(EagleError, match=named):
        write_answers(respondent(network, **change), asked(2), path)
    assert path.read_bytes() == before


def test_another_target_is_named(network: nn.Module, path: Path) -> None:
    of = respondent(network)
    write(of, asked(2), path)
    with pytest.raises(EagleError, match="target 'tiny' and not 'other'"):
        write_answers(of._replace(identity="other"), asked(2), path)
    origin_path(path).unlink()
    with pytest.raises(EagleError, match="does not say what its answers depend on"):
        write_answers(of, asked(2), path)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_was_answered_is_not_answered_again_when_the_data_change(
    network: nn.Module, path: Path, temperature: float
) -> None:
    """Greedy answers are found at any place; drawn ones depend on it."""
    of, four = respondent(network, answer_temperature=temperature), asked(4)
    first = write_answers(of, four, path)
    before = path.read_bytes()
    changed = [four[3], four[1], [user("something else")]]
    second = write_answers(of, changed, path)
    assert second == write_answers(of, changed, path.with_name("anew.jsonl"))
    assert second[1].answers == first[1].answers and [one.place for one in second] == [0, 1, 2]
    n_new = path.read_bytes().removeprefix(before).count(b"\n")
    assert n_new == (1 if temperature == 0 else 2)
    assert write_answers(of, four, path) == first, "the lines of other data stay"


def test_how_many_are_answered_at_once_may_change(network: nn.Module, path: Path) -> None:
    of, many = respondent(network, answers_at_once=1), respondent(network, answers_at_once=9)
    found = write(of, asked(6), path)
    assert write(many, asked(6), path) == found
    assert write(many, asked(6), path.with_name("many.jsonl")) == found


def test_a_prompt_without_room_is_left_out_and_the_last_answer_fills_the_context(
    network: nn.Module, path: Path
) -> None:
    long = [user(TOLD[:20]), user(TOLD[:20])]
    of = respondent(network)._replace(max_context=30)
    total = tally(write_answers(of, [long, [user(TOLD[:40])], [user(TOLD[:8])]], path))
    first, second, third = read_answers(path)
    assert total.left_out == total.shortened == {"no room": 1} and total.conversations == 2
    assert [m["role"] for m in first.messages] == ["user", "assistant"]
    assert len(first.answers[0].tokens) <= 30 - len(encode(OftenEnds(), [user(TOLD[:20])]))
    assert second.messages == [user(TOLD[:40])] and not second.answers
    assert third.left_out is None


def test_logits_that_are_no_numbers_end_the_run(path: Path) -> None:
    network = build_target("llama")
    network.model.norm.weight = network.model.norm.weight * mx.nan
    with pytest.raises(EagleError, match="NaN or infinite"):
        write_answers(respondent(network), asked(2), path)


def test_a_target_without_a_template_or_with_a_state_that_is_not_batched_is_refused(
    network: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bare(OftenEnds):
        has_chat_template = False

    with pytest.raises(EagleError, match="no chat template.* plain text"):
        write_answers(respondent(network)._replace(tokenizer=Bare()), asked(1), path)
    place = "mlx_eagle.training.texts.target_answers.make_prompt_cache"
    monkeypatch.setattr(place, lambda network: [object()])
    with pytest.raises(EagleError, match="cannot answer several conversations at once with object"):
        write_answers(respondent(network), asked(1), path)
    assert not path.exists()


def test_the_target_of_a_pair_answers_in_a_batch_as_its_engine_does(
    turning: Engine, prompts: list[str], path: Path
) -> None:
    options = DataOptions(answer_tokens=8, answers_at_once=3)
    of = Respondent(turning.target.model, turning.tokenizer, "turning", 2048, options)
    written = list(write(of, [[user(prompt)] for prompt in prompts[:4:2]], path))
    assert len(written) == 2
    for one in written:
        want = turning.generate(one.messages[:1], max_tokens=8, speculate=False)
        [answer] = one.answers
        assert answer.tokens[: len(want.tokens)] == want.tokens
        assert one.messages[1]["content"] == want.text


def test_greedy_draws_are_mlx_lm_s_argmax() -> None:
    log_probs = mx.random.normal((5, 40), key=mx.random.key(1))
    greedy = SeededSampler(temperature=0, seed=0)
    assert mx.array_equal(greedy(log_probs, None, 0), mx.argmax(log_probs, axis=-1))  # type: ignore[arg-type]
