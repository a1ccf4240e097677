"""Recorded answers as an HTML page that plays them side by side; it needs no network and no server.

Every token is an element that knows when it came, so the page is whole without its script, which
only hides tokens and shows them again. The layout and the script are in `replay.html`.
"""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from unicodedata import category

from mlx_eagle.bench.recording import Arrival, Played, Recording
from mlx_eagle.bench.specs import PLAIN

PACES = ("1", "0.5", "0.25", "0.1")  # times as fast as it was


def to_page(played: Sequence[Played], facts: Mapping[str, str], repeats: int) -> str:
    """Return the page.

    Args:
        played: questions with their answers.
        facts: what was measured with what: machine, models, command.
        repeats: how often each answer was given; the one of median length is played.
    """
    note = (
        "The times were measured where this page was made, with the command below; nothing is "
        "simulated. They begin with the question, so they include its reading."
    )
    if repeats > 1:
        note += f" Of {repeats} answers each, which took turns, the one of median length is shown."
    rows = [f"<tr><th>{_text(k)}</th><td>{_text(v)}</td></tr>" for k, v in facts.items()]
    template = (files("mlx_eagle.bench") / "replay.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        sections="\n".join(map(_section, played)), note=_text(note), facts="\n".join(rows)
    )


def _section(played: Played) -> str:
    """Return a question with its answers."""
    longest = max(answer.seconds for answer in played.answers)
    paces = "".join(f'<option value="{pace}">{pace}x</option>' for pace in PACES)
    return "\n".join(
        [
            '<section class="question">',
            f"<h2>{_text(played.question)}</h2>",
            f'<p class="dim">{_text(verdict(played))}</p>',
            '<div class="controls" hidden><button type="button">Play</button>'
            f"<label>speed <select>{paces}</select></label></div>",
            '<div class="answers">',
            *(_article(answer, longest) for answer in played.answers),
            "</div>",
            "</section>",
        ]
    )


def verdict(played: Played) -> str:
    """Return in a sentence whether both texts are the same, and how much sooner one was there."""
    plain, other = played.answers
    ratio = plain.seconds / other.seconds if other.seconds else 0.0
    speed = (
        f"{other.contestant} took {other.seconds:.2f} s where plain decoding took "
        f"{plain.seconds:.2f} s: {ratio:.2f} times as fast."
    )
    if played.is_same_text:
        return f"The same text, token by token ({len(plain.tokens)} tokens). {speed}"
    pairs = zip(plain.tokens, other.tokens, strict=False)
    n_same = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
    after = min(len(plain.tokens), len(other.tokens)) if n_same is None else n_same
    return f"The texts part after {after} tokens, so the times are of different texts. {speed}"


def _article(answer: Recording, longest: float) -> str:
    """Return an answer with its figures."""
    kind = "plain" if answer.contestant == PLAIN else "speculative"
    title = "plain decoding" if answer.contestant == PLAIN else f"speculative ({answer.contestant})"
    length = f" · acceptance length {answer.acceptance_length:.2f}" if kind != "plain" else ""
    share = 100 * answer.seconds / longest if longest else 100
    return "\n".join(
        [
            f'<article class="{kind}" data-seconds="{answer.seconds:.4f}">',
            f"<h3>{_text(title)}</h3>",
            f'<p class="figures dim"><span class="clock">{answer.seconds:.2f}</span> s · '
            f'<span class="count">{len(answer.arrivals)}</span> tokens · '
            f"the first after {answer.arrivals[0].seconds:.2f} s{length}</p>",
            f"<pre>{''.join(map(_token, answer.arrivals))}</pre>",
            f'<div class="bar"><i style="width: {share:.1f}%"></i></div>',
            "</article>",
        ]
    )


def _token(arrival: Arrival) -> str:
    """Return a token as an element that knows when it came."""
    kind = ' class="drafted"' if arrival.is_draft else ""
    return f'<span{kind} data-t="{arrival.seconds:.4f}">{_text(arrival.text)}</span>'


def _text(text: str) -> str:
    """Return text as it may stand in the page: what is no sign, space or line end is replaced."""
    return escape("".join(c if _is_shown(c) else "\ufffd" for c in text))


def _is_shown(char: str) -> bool:
    """Say whether a character is a sign, a space of any kind, or joins signs as some scripts do."""
    return char.isprintable() or char in "\n\t\u200c\u200d" or category(char) == "Zs"
