"""A linear head trains as ``nn.Linear`` and PyTorch's loss do: alone, and in two processes."""

import pytest
import torch
import torch.nn.functional as F
from torch import multiprocessing, nn

import torch_softmax
from linear_training import CASES, train_in_process


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """For each of two processes and each case, what our head and PyTorch's come to."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("needs a PyTorch with gloo")
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(train_in_process, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_linear_head_trains_in_two_processes_as_pytorchs_does(case, trained):
    for of_process in trained:
        (losses, parameters, functions), (expected_losses, expected_parameters, _) = of_process[
            case
        ]
        # in chunks, not by all logits
        assert functions == {"LinearCrossEntropyFunctionBackward"}
        assert losses == pytest.approx(expected_losses, rel=1e-5)
        torch.testing.assert_close(parameters, expected_parameters)
    assert trained[0][case][0][1][0].equal(trained[1][case][0][1][0])


N_CLASSES, N_FEATURES, N_TOKENS, N_STEPS = 61, 32, 16, 200


class LanguageModel(nn.Module):
    """Four layers of attention, which give the features of each token."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(N_CLASSES, N_FEATURES)
        nn.init.normal_(self.embedding.weight, std=N_FEATURES**-0.5)
        self.positions = nn.Parameter(torch.randn(N_TOKENS, N_FEATURES) / 10)
        # smooth: where rounding decides on which side of ReLU's kink a unit lies, trainings part
        smooth = {"dropout": 0.0, "activation": F.gelu, "batch_first": True}
        layer = nn.TransformerEncoderLayer(N_FEATURES, 2, 64, **smooth)
        self.layers = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.mask = nn.Transformer.generate_square_subsequent_mask(N_TOKENS)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions
        return self.layers(x, mask=self.mask, is_causal=True)


def some_text():
    """Tokens in which each follows from the one before it, most of the time."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(N_CLASSES, (4000,), generator=generator)
    for i in range(1, len(tokens)):
        if tokens[i] % 5:
            tokens[i] = (3 * tokens[i - 1] + 1) % N_CLASSES
    return tokens


def losses_of_training(loss_of, dtype=torch.float32):
    """The loss of each step, where ``loss_of`` has features, weight of the head, and targets."""
    torch.manual_seed(0)
    model = LanguageModel().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    text, losses = some_text(), []
    for step in range(N_STEPS):
        generator = torch.Generator().manual_seed(step)
        starts = torch.randint(len(text) - N_TOKENS, (4, 1), generator=generator)
        batch = text[starts + torch.arange(N_TOKENS + 1)]
        target = batch[:, 1:].clone()
        target[:, 0] = -100
        loss = loss_of(model(batch[:, :-1]), model.embedding.weight, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.double)


def chunked(x, weight, target):
    return torch_softmax.linear_cross_entropy(x, weight, target, chunk_size=24)


def of_logits(x, weight, target):
    return F.cross_entropy(F.linear(x, weight).flatten(0, 1), target.flatten())


def test_linear_cross_entropy_trains_a_language_model_as_pytorchs_loss_does():
    ours, theirs = (losses_of_training(loss_of) for loss_of in (chunked, of_logits))
    exact = losses_of_training(of_logits, torch.double)
    assert theirs[-20:].mean() < 0.9 * theirs[:20].mean()
    # from the same start, rounding grows with the steps; no more of it than PyTorch's own
    errors, allowed = (ours - exact).abs(), (theirs - exact).abs().cummax(0).values
    rounding = torch.finfo(torch.float32).eps * theirs
    assert (errors <= 2 * (allowed + rounding)).all()
