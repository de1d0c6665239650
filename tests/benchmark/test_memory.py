"""Peak memory is what lives at once."""

import pytest
import torch

from torch_softmax.benchmark.cases import Case
from torch_softmax.benchmark.memory import peak_bytes_on_cpu
from torch_softmax.benchmark.providers import OWN, PEERS
from torch_softmax.benchmark.workload import Workload, make_inputs

N_ROWS, N_CLASSES = 1024, 1000
MATRIX_BYTES = 4 * N_ROWS * N_CLASSES


def peak_of(operator, mode, provider):
    case = Case(operator, mode, (N_ROWS, N_CLASSES), "float32")
    work = Workload(case, provider, provider.make(case), make_inputs(case, 1, "cpu", 0))
    work.run(work.prepare())
    prepared = work.prepare()
    return peak_bytes_on_cpu(lambda: work.run(prepared))


def test_peak_counts_what_lives_at_once():
    assert peak_bytes_on_cpu(lambda: None) == 0
    assert peak_bytes_on_cpu(lambda: torch.empty(1000)) == 4000
    assert peak_bytes_on_cpu(lambda: [torch.empty(1000) for _ in range(3)]) == 12_000
    assert peak_bytes_on_cpu(lambda: [torch.empty(1000).numel() for _ in range(3)]) == 4000


# eager's step holds log-probabilities, their gradient and the gradient of the logits
@pytest.mark.parametrize(
    ("operator", "mode", "matrices"),
    [
        ("softmax", "forward", 1),
        ("softmax", "backward", 1),
        ("softmax", "step", 2),
        ("cross_entropy", "forward", 1),
        ("cross_entropy", "step", 3),
    ],
)
def test_peak_of_eager_is_the_known_number_of_matrices(operator, mode, matrices):
    peak = peak_of(operator, mode, PEERS["eager"][0])
    assert peak == pytest.approx(matrices * MATRIX_BYTES, rel=0.01)


def test_peak_sees_what_our_operators_allocate():
    ours, in_place = (peak_of("cross_entropy", "step", provider) for provider in OWN)
    assert ours > MATRIX_BYTES
    assert ours - in_place == pytest.approx(MATRIX_BYTES, rel=0.01)
