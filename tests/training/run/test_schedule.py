"""Learning rates by the number of the update."""

import pytest

from mlx_eagle.training.run.schedule import FLOOR, rate_factor


def factors(n_updates: int, warmup: float, decay_from: float) -> list[float]:
    steps = range(n_updates)
    return [rate_factor(i, n_updates, warmup=warmup, decay_from=decay_from) for i in steps]


def test_the_worked_example_is_true() -> None:
    expected = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert factors(10, 0.2, 0.5) == pytest.approx(expected)


def test_the_rates_are_those_of_the_fixtures_trainer_one_update_later() -> None:
    """It counts its first update as 0 of the warm-up, which leaves the weights as they are."""

    def theirs(update: int, share: float) -> float:
        return min(1, update / 20) * (1.0 if share < 0.5 else max(0.02, (1 - share) / 0.5))

    ours = factors(400, 20 / 400, 0.5)
    assert ours == pytest.approx([theirs(i + 1, i / 400) for i in range(400)])


def test_rates_never_fall_below_the_floor_nor_rise_above_one() -> None:
    found = factors(1000, 0.02, 0.5)
    assert min(found[20:]) == FLOOR
    assert max(found) == 1


def test_without_warmup_and_decay_the_rate_is_constant() -> None:
    assert factors(7, 0, 1) == [1.0] * 7


def test_a_single_update_has_a_rate() -> None:
    assert rate_factor(0, 1, warmup=0.02, decay_from=0.5) == 1
