"""In which order samples are taken, and what is told of them."""

import gc
import itertools
from collections import Counter

import pytest

from torch_softmax.benchmark.timing import Spread, balanced_rounds, interleaved, spread


@pytest.mark.parametrize("n", range(1, 9))
def test_order_gives_everybody_each_place_as_often(n):
    rounds = balanced_rounds(n)
    places = Counter((place, who) for order in rounds for place, who in enumerate(order))
    assert len(places) == n * n
    assert set(places.values()) == {len(rounds) // n}


@pytest.mark.parametrize("n", range(2, 9))
def test_order_lets_everybody_follow_everybody_as_often(n):
    follows = Counter(pair for order in balanced_rounds(n) for pair in itertools.pairwise(order))
    assert len(follows) == n * (n - 1)
    assert len(set(follows.values())) == 1


@pytest.mark.parametrize(("repeats", "taken"), [(1, 6), (6, 6), (7, 12)])
def test_order_is_kept_in_whole_rounds(repeats, taken):
    calls = []

    def sampler(name):
        return lambda: calls.append(name) or len(calls)

    samples = interleaved({name: sampler(name) for name in "abc"}, repeats)
    assert {name: len(values) for name, values in samples.items()} == dict.fromkeys("abc", taken)
    assert calls[:18] == ["abc"[who] for order in balanced_rounds(3) for who in order]
    assert all(calls[value - 1] == name for name in "abc" for value in samples[name])
    assert gc.isenabled()


def test_order_of_nobody_is_empty():
    assert interleaved({}, 5) == {}


def test_spread_of_known_samples():
    samples = [9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0, 11.0, 10.0]
    assert spread(samples) == Spread(median=6.0, p20=3.0, p80=9.0, minimum=1.0)
    assert spread([1.0, 2.0]) == Spread(median=1.5, p20=1.2, p80=pytest.approx(1.8), minimum=1.0)
