"""What of a prompt is already cached, also where a drafter cannot be copied or saved."""

from functools import partial
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step

from doubles import ScriptedDrafter, make_session, wrong_every
from mlx_eagle.drafters.base import Restorable
from mlx_eagle.session.prefix import shared_tokens
from mlx_eagle.target.target import Target
from mlx_eagle.tree_shape import TreeShape

PROMPT = list(range(3, 20))


@pytest.mark.parametrize(
    ("held", "ids", "n"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 9, 3], 1)]
)
def test_two_sequences_share_what_they_begin_with(held: list[int], ids: list[int], n: int) -> None:
    assert shared_tokens(held, ids) == n


def test_a_drafter_that_cannot_be_copied_starts_empty_in_a_fork(tiny_target: Any) -> None:
    model = tiny_target("llama")
    steps = generate_step(mx.array(PROMPT), model, max_tokens=24)
    truth = [*PROMPT, *(int(token) for token, _ in steps)]
    session = make_session(Target(model), partial(ScriptedDrafter, truth, wrong_every(5), 128))
    assert not isinstance(session.prefix.drafter, Restorable)
    shape = TreeShape.chain(3)
    first = [r.token for r in session.stream_generate(PROMPT, max_tokens=8, tree=shape)]
    twin = session.fork()
    assert (session.prefix.head_rows, twin.prefix.drafter.rows) == (0, 0)
    assert not any(name.startswith("head.") for name in session.prefix.arrays())
    prompt = [*PROMPT, *first]
    for talk in (twin, session):
        rest = list(talk.stream_generate(prompt, max_tokens=8, tree=shape))
        assert [r.token for r in rest] == truth[len(prompt) : len(prompt) + 8]
        assert rest[-1].stats.accepted > 0, "the drafter was told of nothing"
