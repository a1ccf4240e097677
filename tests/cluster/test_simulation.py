"""The simulation of several Macs: its communication is that of the published figures."""

import pytest

from benchmark_modules import load_benchmark


@pytest.mark.parametrize(
    ("link", "milliseconds"),
    [
        ("Thunderbolt 5, JACCL, fast fence", (5.2, 6.9, 29.8)),
        ("Thunderbolt 5, JACCL, default fence", (29.2, 30.9, 53.8)),
        ("Thunderbolt, TCP ring", (72.5, 74.6, 103.5)),
        ("10 GbE, TCP ring", (74.4, 83.9, 215.0)),
    ],
)
def test_two_hosts_exchange_two_sums_a_layer(
    link: str, milliseconds: tuple[float, float, float]
) -> None:
    """By hand: 160 sums of the latency and of rows of 16 KiB over the bandwidth."""
    simulation = load_benchmark("simulate_hosts")
    found = [1e3 * simulation.LINKS[link].seconds(n, 2) for n in (1, 5, 60)]
    assert found == pytest.approx(milliseconds, rel=0.01)


def test_drafts_gain_more_where_sums_take_longer() -> None:
    """A round's latency is shared by its tokens; its rows cost what they cost on one Mac."""
    simulation = load_benchmark("simulate_hosts")
    links = [simulation.Link(seconds, 5e9, "") for seconds in (0.0, 5e-5, 2e-4, 1e-3)]
    four_rows = [simulation.curve_of(link, 2).rows[4] for link in links]
    assert four_rows == sorted(four_rows, reverse=True)
    assert four_rows[-1] < 1.1 < four_rows[0]
