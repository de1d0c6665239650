"""The functions under torch.compile and torch.export."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import torch_softmax
from loss_functions import FUNCTIONS, OWN_FUNCTIONS
from numerics import value_and_gradients
from operator_pairs import some_classes


# every function, every second one with symbolic sizes
@pytest.mark.parametrize(
    ("name", "dynamic"), [*zip(FUNCTIONS | OWN_FUNCTIONS, itertools.cycle([False, True]))]
)
def test_compile_makes_one_graph_with_the_same_results(name, dynamic, device):
    function = partial((FUNCTIONS | OWN_FUNCTIONS)[name], torch_softmax)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    x = torch.randn(3, 4, 2, device=device, requires_grad=True)
    results = []
    for f in (compiled, function):
        y = f(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), x)))
    torch.testing.assert_close(*results)


def test_compile_with_inductor_gives_the_same_results():
    torch._dynamo.reset()
    function = partial(FUNCTIONS["weighted and smoothed"], torch_softmax)
    x = torch.randn(3, 4, 2, requires_grad=True)
    results = []
    for f in (torch.compile(function, fullgraph=True), function):
        y = f(x)
        results.append((y, *torch.autograd.grad(y, x)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("weighted", [False, True])
def test_break_13_a_compiled_loss_counts_the_rows_of_each_call(weighted, device):
    torch._dynamo.reset()
    compiled = torch.compile(torch_softmax.cross_entropy, fullgraph=True, backend="aot_eager")
    logits = torch.randn(8, 10, dtype=torch.double, device=device)
    weight = torch.rand_like(logits[0]) if weighted else None
    # another fraction of ignored rows in each call: the graph must not contain it as a constant
    for n_ignored in (3, 0, 7):
        target = some_classes(logits)
        target[:n_ignored] = -100
        torch.testing.assert_close(
            value_and_gradients(compiled, logits, target, weight),
            value_and_gradients(F.cross_entropy, logits, target, weight),
        )
