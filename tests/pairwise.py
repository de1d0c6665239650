"""Covering arrays: few cases in which all pairs of settings occur."""

import itertools


def pairwise(*axes):
    """Cases, a value of each axis, such that every two values of different axes share a case."""
    # by position, as values such as {} have no hash
    positions = itertools.product(*(range(len(axis)) for axis in axes))
    return [
        tuple(axis[i] for axis, i in zip(axes, case, strict=True)) for case in covering(positions)
    ]


def covering(cases, settings=tuple):
    """Few of the cases, in which all pairs of settings occur that occur in any of them."""

    def pairs(case):
        return set(itertools.combinations(enumerate(settings(case)), 2))

    pairs_of = [(case, pairs(case)) for case in cases]
    missing = set().union(*(found for _, found in pairs_of))
    chosen = []
    while missing:
        case, found = max(pairs_of, key=lambda item: len(item[1] & missing))
        chosen.append(case)
        missing -= found
    return chosen
