"""Break-even of two costs, the cost in a ledger, and mode coverage of mixtures with known shares."""

import math

import numpy as np
import pytest

from gensamp.core import Bill, Ledger
from gensamp.evaluate.cost import Cost, break_even, cost_of
from gensamp.evaluate.modes import mode_coverage

CENTRES = np.array([[-5.0, 0.0], [5.0, 0.0], [0.0, 9.0]])
WEIGHTS = np.array([0.5, 0.3, 0.2])


@pytest.mark.parametrize(
    ("learned", "chain", "expected"),
    [
        (Cost(1_000, 1), Cost(100, 10), 100.0),
        (Cost(1_000, 10), Cost(100, 10), None),
        (Cost(1_000, 11), Cost(100, 10), None),
        (Cost(50, 5), Cost(100, 10), 0.0),
        (Cost(50, 20), Cost(100, 10), None),
        (Cost(100, 1), Cost(100, math.inf), 0.0),
        (Cost(500, math.nan), Cost(100, 1), None),
    ],
)
def test_break_even(learned, chain, expected):
    assert break_even(learned, chain) == expected


def test_break_even_is_where_totals_meet():
    learned, chain = Cost(3_456.0, 0.7), Cost(78.0, 12.3)
    n = break_even(learned, chain)
    assert learned.of(n) == pytest.approx(chain.of(n))
    assert learned.of(n + 1) < chain.of(n + 1) and learned.of(n - 1) > chain.of(n - 1)


def test_cost_of_a_ledger():
    ledger = Ledger(
        fit=Bill(forwards=1_000, wall_seconds=5.0, compile_seconds=3.0), tune=Bill(gradients=10, wall_seconds=1.0),
        sample=Bill(gradients=300, densities=100, wall_seconds=4.0, compile_seconds=2.0),
    )  # fmt: skip
    assert cost_of(ledger, 200, "evaluations") == Cost(1_010.0, 2.0)
    assert cost_of(ledger, 200, "seconds") == Cost(8.0, 0.01)
    assert Cost(5.0, 2.0).per(0.5) == Cost(5.0, 4.0)
    assert math.isinf(Cost(5.0, 2.0).per(0.0).price)
    with pytest.raises(ValueError, match="at least 1 draw"):
        cost_of(ledger, 0)


def mixture(rng, n, weights):
    k = rng.choice(3, n, p=weights)
    return CENTRES[k] + 0.5 * rng.normal(size=(n, 2))


def test_exact_draws_have_the_expected_coverage():
    rng = np.random.default_rng(0)
    found = [mode_coverage(mixture(rng, 400, WEIGHTS), CENTRES, WEIGHTS, np.full(3, 2.0)) for _ in range(40)]
    errors = [cover.weight_error for cover in found]
    assert all(cover.found == 3 for cover in found)
    assert abs(np.mean(errors) - found[0].expected_weight_error) < 4 * np.std(errors) / np.sqrt(40)
    assert found[0].expected_found == pytest.approx(3)


def test_a_chain_in_one_mode_is_seen():
    x = CENTRES[1] + 0.5 * np.random.default_rng(1).normal(size=(500, 2))
    cover = mode_coverage(x, CENTRES, WEIGHTS, np.full(3, 2.0))
    assert cover.found == 1 and cover.weight_error == pytest.approx(0.7)
    few = mode_coverage(x[:3], CENTRES, WEIGHTS, np.full(3, 2.0))
    assert few.expected_found == pytest.approx(np.sum(1 - (1 - WEIGHTS) ** 3), abs=0.2)


def test_weights_and_draws_outside():
    x = np.concatenate([CENTRES, np.array([[30.0, 30.0]])])
    cover = mode_coverage(x, CENTRES, WEIGHTS, 2.0, weight=np.array([0.4, 0.24, 0.16, 0.2]))
    assert cover.weight_error == pytest.approx(0.0) and cover.outside == pytest.approx(0.2)
    far = mode_coverage(x[3:], CENTRES, WEIGHTS, 2.0)
    assert far.found == 0 and far.weight_error == 1.0
    with pytest.raises(ValueError, match="expected"):
        mode_coverage(np.zeros((4, 3)), CENTRES, WEIGHTS, 2.0)
