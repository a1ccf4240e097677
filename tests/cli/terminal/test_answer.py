"""One answer, counted: its summary and what the user should know."""

from mlx_eagle.cli.terminal.answer import Answer
from mlx_eagle.decoding.stats import GenerationStats
from mlx_eagle.session.responses import GenerationResponse
from mlx_eagle.speculation import Speculation


class Silent:
    """Shows nothing, and says when it was closed."""

    is_closed = False

    def add(self, piece: GenerationResponse) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


def piece(
    n: int = 1,
    *,
    from_draft: bool = False,
    stats: GenerationStats | None = None,
    reason: str | None = None,
) -> GenerationResponse:
    """Return a response that carries the n-th token."""
    return GenerationResponse(
        text="x",
        token=n,
        logprobs=None,
        from_draft=from_draft,
        prompt_tokens=3,
        prompt_tps=30.0,
        generation_tokens=n,
        generation_tps=8.0,
        peak_memory=0.1,
        finish_reason=reason or ("stop" if stats else None),
        n_accepted=0,
        tree=None,
        stats=stats,
    )


def answered(*pieces: GenerationResponse) -> Answer:
    answer = Answer(Silent())
    for response in pieces:
        answer.add(response)
    return answer


def test_an_answer_closes_what_shows_it_however_it_ends() -> None:
    view = Silent()
    with Answer(view):
        pass
    assert view.is_closed


def test_an_answer_whose_end_did_not_come_is_summed_up_from_its_tokens() -> None:
    assert answered().summary() == "no tokens"
    drafted = [False, True, True, False, True, False]
    pieces = [piece(n, from_draft=draft) for n, draft in enumerate(drafted, start=1)]
    summary = answered(*pieces).summary()
    assert summary == "6 tokens · 8.0 tokens/s · acceptance length 2.50 · 2 rounds"


def test_the_summary_says_when_the_limit_or_missing_speculation_shaped_the_answer() -> None:
    stats = GenerationStats(generation_tokens=1, status=Speculation.off("no head was given"))
    assert answered(piece(stats=stats, reason="length")).summary() == (
        "1 token · 8.0 tokens/s · speculation off: no head was given · ended by max_tokens"
    )


def test_the_summary_says_that_an_answer_was_stopped() -> None:
    summary = answered(piece(2, stats=GenerationStats(), reason="cancelled")).summary()
    assert summary == "stopped · 2 tokens · 8.0 tokens/s"


def test_a_full_context_is_told_in_place_of_the_limit() -> None:
    stats = GenerationStats(ended_by="the context of 2048 tokens is full")
    answer = answered(piece(stats=stats, reason="length"))
    assert "max_tokens" not in answer.summary()
    assert answer.remarks() == ["ended here: the context of 2048 tokens is full"]


def test_messages_that_were_left_out_are_counted_and_advice_is_passed_on() -> None:
    stats = GenerationStats(dropped_messages=2, advice="try: mlx-eagle doctor \x1b[2J")
    assert answered(piece(stats=stats)).remarks() == [
        "left out: the 2 oldest messages, for which the context had no room",
        "try: mlx-eagle doctor ␛[2J",
    ]
    assert answered(piece()).remarks() == []


def test_a_long_reason_is_not_told_after_every_answer() -> None:
    long = "verifying 5 tokens takes 3.70 times as long as decoding one here, drafting them 0.95"
    for reason, shown in (
        (long, "off (/stats or --explain: why)"),
        ("no head", "off: no head"),
    ):
        answer = answered(piece(stats=GenerationStats(status=Speculation.off(reason))))
        assert f"speculation {shown}" in answer.summary()
