"""What Hypothesis draws for the properties of the operators, and how many examples of it."""

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

property_of = settings(
    # the same examples in every run, and none stored beside the code
    derandomize=True,
    database=None,
    max_examples=12,
    # an example is a few numbers, with nothing in it to shrink
    phases=[Phase.generate],
    # the first example compiles
    deadline=None,
    # a test's device is that of all its examples
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# an interpreted kernel takes a millisecond for each of a tensor's tiles
slow_property_of = settings(property_of, max_examples=6)
# around the borders of a tile's rows and columns, and of what a block holds at all
BORDERS = [(1, 1), (129, 1), (1, 2), (127, 10), (128, 10), (129, 10), (63, 32), (65, 33)]
BORDERS += [(3, 1023), (2, 1024), (3, 1025), (1, 2048), (2, 2049), (1, 16_384), (2, 16_385)]
SHAPES = st.sampled_from(BORDERS) | st.tuples(st.integers(1, 40), st.integers(1, 70))
# the gradient of one class is 0, which leaves no size to measure a rounding by
SHAPES_WITH_GRADIENT = SHAPES.filter(lambda shape: shape[1] > 1)
# (samples, classes, positions); the classes of the last ones take several blocks
IMAGES = st.sampled_from([(2, 3, 5), (1, 10, 33), (3, 1, 4), (2, 17, 1), (1, 300, 5)])
WIDE = st.sampled_from([torch.float32, torch.float64])
SEEDS = st.integers(0, 2**31)
# sure rows and unsure ones
SPREADS = st.sampled_from([0.1, 3.0, 50.0])
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "label_smoothing": st.sampled_from([0.1, 0.5, 1.0]),
        "z_loss": st.sampled_from([1e-4, 0.3]),
        "softcap": st.sampled_from([0.7, 30.0]),
        "logit_scale": st.sampled_from([-0.5, 3.0]),
    },
)


class Rows:
    """Logits, classes, probabilities and class weights that one seed makes."""

    def __init__(self, shape, seed, spread=3.0, dtype=torch.float64, device="cpu"):
        random = torch.Generator().manual_seed(seed)
        n_classes = shape[1]
        logits = spread * torch.randn(shape, generator=random)
        self.logits = logits.to(device, dtype)
        rows = logits[:, 0].shape
        self.target = torch.randint(n_classes, rows, generator=random).to(device)
        ignored = torch.rand(rows, generator=random) < 0.3
        ignored.flatten()[0] = False  # the mean of no row is NaN
        self.ignoring = self.target.masked_fill(ignored.to(device), -100)
        self.probabilities = torch.rand(shape, generator=random).softmax(1).to(device, dtype)
        self.weight = (torch.rand(n_classes, generator=random) + 0.5).to(device, dtype)
