"""Messages are read back as they were, and nothing else is read as one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_eagle.cluster.messages import (
    Commit,
    Done,
    Drop,
    Fork,
    New,
    Order,
    Run,
    Stop,
    Trim,
    commit,
    decode_orders,
    decode_report,
    encode_orders,
    encode_report,
)
from mlx_eagle.errors import ClusterError

IDS, ROWS = st.integers(0, 1 << 20), st.integers(0, 1 << 20)
ORDERS = st.one_of(
    st.builds(New, cache=IDS, target=IDS, bits=st.sampled_from([None, 4, 8])),
    st.builds(Fork, cache=IDS, source=IDS),
    st.builds(Commit, cache=IDS, first=ROWS, others=st.lists(ROWS, max_size=4)),
    st.builds(Trim, cache=IDS, rows=ROWS),
    st.builds(Drop, cache=IDS),
    st.builds(Stop),
    st.builds(
        Run,
        target=IDS,
        cache=IDS,
        number=st.integers(1, 1 << 20),
        rows=ROWS,
        tokens=st.lists(ROWS, min_size=1, max_size=8),
        parents=st.none() | st.lists(ROWS, max_size=8),
    ),
)
RUN: dict[str, Any] = {
    "kind": "run",
    "target": 0,
    "cache": 1,
    "number": 1,
    "rows": 0,
    "tokens": [5],
}


@given(st.lists(ORDERS, max_size=6))
def test_a_batch_is_read_back_as_it_was(orders: list[Order]) -> None:
    assert decode_orders(encode_orders(orders)) == orders


@given(st.lists(st.integers(0, 60), unique=True, max_size=20).map(sorted))
def test_a_path_is_told_by_its_beginning_and_the_rest(path: list[int]) -> None:
    told = commit(3, path)
    assert [*range(told.first), *told.others] == path


def test_a_tree_of_255_nodes_is_a_message_of_a_few_kilobytes() -> None:
    nodes = list(range(255))
    run = Run(
        target=0, cache=1, number=9, rows=4000, tokens=[150_000 + n for n in nodes], parents=nodes
    )
    assert len(encode_orders([commit(1, [0, 4, 9]), run])) < 4096


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": []},
        {"tokens": [-1]},
        {"tokens": [1 << 31]},
        {"tokens": ["5"]},
        {"tokens": [5.0]},
        {"tokens": [True]},
        {"cache": -1},
        {"cache": None},
        {"number": 0},
        {"rows": 1 << 40},
        {"kind": "eval"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_field_of_another_kind_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ClusterError, match="no message that is known"):
        decode_orders(json.dumps([RUN | changes]).encode())


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    for decode in (decode_orders, decode_report):
        try:
            decode(data)
        except ClusterError:
            continue
        assert data.strip() == b"[]"


def test_a_report_is_read_back_as_it_was() -> None:
    assert decode_report(encode_report(Done(number=3, rows=70))) == Done(number=3, rows=70)
