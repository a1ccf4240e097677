"""Streaming text: whole characters, exact stop strings."""

from hypothesis import given
from hypothesis import strategies as st

from doubles import ByteTokenizer
from mlx_eagle.session.detokenize import TextStream


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
