"""torch.compile, torch.export and what they make of the operators."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torch_softmax
from loss_functions import FUNCTIONS, OWN_FUNCTIONS
from numerics import value_and_gradients
from operator_pairs import some_classes


# every function, and symbolic sizes in every other one of them
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
    # another share of ignored rows in each call: none of them may end up in the graph
    for n_ignored in (3, 0, 7):
        target = some_classes(logits)
        target[:n_ignored] = -100
        torch.testing.assert_close(
            value_and_gradients(compiled, logits, target, weight),
            value_and_gradients(F.cross_entropy, logits, target, weight),
        )


def test_export_keeps_the_operators():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x, target):
            logits = self.layer(x)
            return torch_softmax.softmax(logits, 1), torch_softmax.cross_entropy(logits, target)

    classifier, arguments = Classifier(), (torch.randn(2, 3), torch.tensor([1, 3]))
    for strict in (False, True):
        program = torch.export.export(classifier, arguments, strict=strict)
        # a Function's forward is a graph of its own, without gradients
        code = "".join(graph.code for graph in program.graph_module.modules())
        assert "torch_softmax.softmax_forward" in code
        assert "torch_softmax.cross_entropy_forward" in code
        torch.testing.assert_close(program.module()(*arguments), classifier(*arguments))


LOGITS = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.3, 0.1]])
TARGET = torch.tensor([2, 0])


def test_forward_mode_under_compile_raises_instead_of_giving_0():
    def derivative(x, v):
        return torch.func.jvp(lambda x: torch_softmax.cross_entropy(x, TARGET), (x,), (v,))[1]

    tangent = torch.ones_like(LOGITS).triu()
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="without forward mode"):
        torch.compile(derivative, fullgraph=True, backend="aot_eager")(LOGITS, tangent)
    expected = torch.func.jvp(lambda x: F.cross_entropy(x, TARGET), (LOGITS,), (tangent,))[1]
    torch.testing.assert_close(derivative(LOGITS, tangent), expected)
