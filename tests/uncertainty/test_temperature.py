import math

import pytest
import torch
import torch.nn.functional as F

from calibrated_rows import calibrated_rows
from torch_softmax import uncertainty
from torch_softmax.uncertainty import TemperatureScaling


def mean_loss(logits, target):
    return F.cross_entropy(logits.double(), target).item()


def loss_by_temperature(logits, target, temperature):
    return mean_loss(logits.double() / temperature.double(), target)


@pytest.mark.parametrize("known", [0.3, 1.0, 2.5])
def test_temperature_scaling_recovers_a_known_temperature(known):
    logits, target = calibrated_rows(20_000, 10)
    scaling = TemperatureScaling().fit(known * logits, target)
    # 20 000 rows tell the temperature to about 1 %
    assert scaling.temperature.item() == pytest.approx(known, rel=0.03)


def test_temperature_scaling_finds_the_least_loss():
    logits, target = calibrated_rows(500, 10)
    logits = 4 * logits
    temperature = TemperatureScaling().fit(logits, target).temperature
    least = loss_by_temperature(logits, target, temperature)
    for factor in (0.99, 1.01):
        assert least < loss_by_temperature(logits, target, factor * temperature)


def test_temperature_scaling_of_a_known_row():
    # right in 3 of 4 rows, so that calibrated logits differ by log(3)
    logits = torch.tensor([[4.0, 0.0]]).expand(4, 2)
    scaling = TemperatureScaling().fit(logits, torch.tensor([0, 0, 0, 1]))
    assert scaling.temperature.item() == pytest.approx(4 / math.log(3), rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_temperature_scaling_never_raises_the_loss(seed):
    random = torch.Generator().manual_seed(seed)
    n_rows, n_classes = 1 + seed, 1 + seed % 7
    logits = 10 ** (seed % 5 - 2) * torch.randn(n_rows, n_classes, generator=random)
    target = torch.randint(n_classes, (n_rows,), generator=random)
    temperature = TemperatureScaling().fit(logits, target).temperature
    before = mean_loss(logits, target)
    assert loss_by_temperature(logits, target, temperature) <= before + 1e-10


def test_temperature_scaling_of_separable_logits_stops_at_its_least():
    target = torch.arange(20) % 4
    scaling = TemperatureScaling().fit(F.one_hot(target, 4).float(), target)
    least = TemperatureScaling.MIN_TEMPERATURE
    assert scaling.temperature.item() == pytest.approx(least, rel=1e-6)


def test_temperature_scaling_of_logits_that_are_always_wrong_stops_at_its_most():
    target = torch.arange(20) % 4
    scaling = TemperatureScaling().fit(-F.one_hot(target, 4).float(), target)
    most = TemperatureScaling.MAX_TEMPERATURE
    assert scaling.temperature.item() == pytest.approx(most, rel=1e-6)


@pytest.mark.parametrize("logits", [torch.randn(6, 1), torch.full((6, 3), 2.5), torch.zeros(6, 3)])
def test_temperature_scaling_that_learns_nothing_stays_at_one(logits):
    scaling = TemperatureScaling().fit(logits, torch.zeros(6, dtype=torch.int64))
    assert scaling.temperature == 1


def test_temperature_scaling_fitted_again_forgets_the_first():
    logits, target = calibrated_rows(200, 5)
    scaling = TemperatureScaling().fit(9 * logits, target)
    assert scaling.fit(logits, target).temperature == (
        TemperatureScaling().fit(logits, target).temperature
    )


def test_temperature_scaling_keeps_its_temperature_in_a_state_dict():
    logits, target = calibrated_rows(200, 5)
    fitted = TemperatureScaling().fit(3 * logits, target)
    loaded = TemperatureScaling()
    loaded.load_state_dict(fitted.state_dict())
    assert torch.equal(loaded(logits), fitted(logits))
    assert repr(loaded) == f"TemperatureScaling(temperature={fitted.temperature.item():.4g})"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_temperature_scaling_takes_and_keeps_every_dtype(dtype):
    logits, target = calibrated_rows(200, 5)
    scaling = TemperatureScaling().fit((3 * logits).to(dtype), target.to(torch.uint8))
    assert scaling.temperature.item() == pytest.approx(3, rel=0.3)
    assert scaling(logits.to(dtype)).dtype == dtype


def test_temperature_scaling_calibrates_and_keeps_every_label():
    logits, target = calibrated_rows(5000, 10)
    logits = 3 * logits
    calibrated = TemperatureScaling().fit(logits, target)(logits)
    before, after = uncertainty.predict(logits), uncertainty.predict(calibrated)
    assert torch.equal(before.label, after.label)
    for score in (uncertainty.calibration_error, uncertainty.brier_score):
        assert score(after.probabilities, target) < score(before.probabilities, target)


def test_temperature_scaling_leaves_the_graph_of_its_logits_alone():
    logits = torch.randn(8, 3, requires_grad=True)
    scaling = TemperatureScaling().fit(logits, torch.arange(8) % 3)
    assert not scaling.temperature.requires_grad
    assert scaling(logits).requires_grad


@pytest.mark.parametrize(
    ("logits", "target", "error", "message"),
    [
        (torch.zeros(0, 3), [], ValueError, "fit needs logits of at least one row, got none"),
        (torch.zeros(2), [0], ValueError, r"fit needs logits of shape \(rows, classes\), got"),
        (torch.zeros(2, 3), [0], ValueError, r"fit needs target of shape \(2,\), one class per"),
        (torch.zeros(2, 3), [0, 3], IndexError, r"fit needs target in \[0, 3\), got 3"),
        (torch.zeros(2, 3), [-100, 0], IndexError, r"fit needs target in \[0, 3\), got -100"),
        (torch.full((1, 2), math.nan), [0], ValueError, "fit needs logits whose cross-entropy is"),
        (torch.tensor([[-math.inf, 0]]), [0], ValueError, "fit needs logits whose cross-entropy"),
    ],
)
def test_temperature_scaling_names_what_it_needs(logits, target, error, message):
    scaling = TemperatureScaling()
    with pytest.raises(error, match=message):
        scaling.fit(logits, torch.tensor(target, dtype=torch.int64))
    assert scaling.temperature == 1


def test_temperature_scaling_refuses_probabilities_as_target():
    with pytest.raises(TypeError, match=r"fit needs target to be class indices .* got torch.float"):
        TemperatureScaling().fit(torch.zeros(2, 3), torch.zeros(2))
