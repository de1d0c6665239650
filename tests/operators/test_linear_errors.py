"""What linear cross-entropy refuses, and in which words."""

import pytest
import torch

import torch_softmax

X, WEIGHT, TARGET = torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"input": torch.zeros(())}, ValueError, "feature axis"),
        ({"input": torch.zeros(4, 3, dtype=torch.long)}, TypeError, "needs input to be float16"),
        ({"input": "x"}, TypeError, "needs input to be a Tensor, got str"),
        ({"linear_weight": torch.zeros(5)}, ValueError, r"linear_weight of shape .*got \(5,\)"),
        (
            {"linear_weight": torch.zeros(5, 3).to_sparse()},
            TypeError,
            "linear_weight to be a s",
        ),
        ({"linear_bias": torch.zeros(5).to_sparse()}, TypeError, "linear_bias to be a s"),
        ({"linear_weight": torch.zeros(0, 3)}, ValueError, "at least one class"),
        ({"linear_weight": torch.zeros(5, 2)}, ValueError, "3 features"),
        ({"linear_weight": torch.zeros(5, 3).double()}, TypeError, "linear_weight of dtype"),
        ({"linear_bias": torch.zeros(4)}, ValueError, r"linear_bias of shape \(5,\), got \(4,\)"),
        ({"linear_bias": torch.zeros(5).half()}, TypeError, "linear_bias of dtype"),
        ({"target": torch.zeros(3, dtype=torch.long)}, ValueError, r"target of shape \(4,\)"),
        ({"target": torch.zeros(4, 3)}, ValueError, r"target of shape \(4, 5\)"),
        ({"target": torch.zeros(4, dtype=torch.bool)}, TypeError, "class indices"),
        ({"target": torch.zeros(4, 5), "ignore_index": 1}, ValueError, "ignore_index"),
        ({"weight": torch.ones(4)}, ValueError, r"weight of shape \(5,\), one per class"),
        ({"reduction": "max"}, ValueError, "reduction"),
        ({"label_smoothing": 2.0}, ValueError, "label_smoothing"),
        ({"denominator": 2, "reduction": "sum"}, ValueError, "denominator=None"),
        ({"logits_dtype": torch.int32}, TypeError, "logits_dtype"),
        ({"logits_dtype": torch.float16}, ValueError, "logits_dtype"),
        ({"chunk_size": 0}, ValueError, "chunk_size of at least 1, got 0"),
        ({"chunk_size": 1.5}, TypeError, "chunk_size of type int"),
    ],
)
@pytest.mark.parametrize(
    "function",
    [torch_softmax.linear_cross_entropy, torch_softmax.linear_cross_entropy_with_stats],
)
def test_linear_cross_entropy_names_what_it_refuses(function, changed, error, words):
    arguments = {"input": X, "linear_weight": WEIGHT, "target": TARGET} | changed
    with pytest.raises(error, match=f"{function.__name__} needs .*{words}|{words}"):
        function(**arguments)


def test_linear_cross_entropy_needs_batched_input_for_several_losses_of_a_row():
    with pytest.raises(ValueError, match=r"needs input of shape \(..., features\)"):
        torch_softmax.linear_cross_entropy(torch.zeros(3), torch.zeros(5, 2, 3), TARGET[:2])


def test_linear_module_needs_a_tuple_of_sizes():
    with pytest.raises(TypeError, match="needs out_features to be a tuple of sizes, got 2"):
        torch_softmax.LinearCrossEntropyLoss(4, 5, out_features=2)
