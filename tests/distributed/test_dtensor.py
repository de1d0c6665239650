"""Softmax and cross-entropy of DTensors, on meshes of four ranks that run in this process."""

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

import torch_softmax
from sharded_classes import OPTIONS, local_ranks, replicated, same_on_all_ranks

LOGITS = 3 * torch.randn(8, 12, dtype=torch.double, generator=torch.Generator().manual_seed(0))
TARGET = torch.tensor([0, 11, -100, 5, 2, 2, -100, 7])
WEIGHT = torch.rand(12, dtype=torch.double, generator=torch.Generator().manual_seed(1)) + 0.5
# meshes, and what they shard: classes, rows, both, neither
SHARDINGS = {
    "classes": ((4,), [Shard(-1)]),
    "rows": ((4,), [Shard(0)]),
    "copies": ((4,), [Replicate()]),
    "rows and classes": ((2, 2), [Shard(0), Shard(1)]),
    "classes and rows": ((2, 2), [Shard(1), Shard(0)]),
    "rows twice": ((2, 2), [Shard(0), Shard(0)]),
    "copies of classes": ((2, 2), [Replicate(), Shard(1)]),
}
# the first four stand for the others
every_sharding = pytest.mark.parametrize(
    "sharding",
    [
        pytest.param(sharding, marks=[] if i < 4 else pytest.mark.exhaustive)
        for i, sharding in enumerate(SHARDINGS.values())
    ],
    ids=SHARDINGS,
)
FUNCTIONS = [torch_softmax.softmax, torch_softmax.log_softmax]


@pytest.fixture(autouse=True)
def ranks():
    with local_ranks() as mode:
        yield mode


def distributed(x, sharding):
    mesh, placements = sharding
    return distribute_tensor(replicated(x), init_device_mesh("cpu", mesh), placements)


def value(x):
    return same_on_all_ranks(x.full_tensor().detach())


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@every_sharding
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("kind", ["indices", "probabilities"])
@pytest.mark.parametrize("name", ["none", "sum", "smoothing", "all"])
def test_dtensor_loss_and_gradients_are_the_unsharded_ones(name, kind, weighted, sharding):
    target = TARGET if kind == "indices" else LOGITS.flip(0).softmax(1)
    # the ranks of one process take PyTorch's own loss for plain options, which lacks that gradient
    needs_gradient = weighted and name == "all"
    weight = WEIGHT.clone().requires_grad_(needs_gradient) if weighted else None
    whole = LOGITS.clone().requires_grad_()
    leaves = [x for x in (whole, weight) if x is not None and x.requires_grad]
    loss = torch_softmax.cross_entropy(whole, target, weight, **OPTIONS[name])
    expected = torch.autograd.grad(loss.sum(), leaves)
    logits = distributed(LOGITS, sharding).requires_grad_()
    if weighted:
        copies = [Replicate()] * len(sharding[1])
        weight = distributed(WEIGHT, (sharding[0], copies)).requires_grad_(needs_gradient)
    leaves = [x for x in (logits, weight) if x is not None and x.requires_grad]
    actual = torch_softmax.cross_entropy(logits, target, weight, **OPTIONS[name])
    assert_close(value(actual), loss.detach())
    gradients = torch.autograd.grad(actual.sum(), leaves)
    assert_close([value(x) for x in gradients], list(expected))


@every_sharding
@pytest.mark.parametrize("kind", ["plain", "sharded as the logits", "copies"])
def test_dtensor_loss_takes_plain_and_distributed_labels(kind, sharding):
    logits = distributed(LOGITS, sharding)
    target = TARGET
    if kind != "plain":
        keep = kind == "sharded as the logits"
        placements = [p if keep and p == Shard(0) else Replicate() for p in sharding[1]]
        target = distributed(TARGET, (sharding[0], placements))
    loss = torch_softmax.cross_entropy(logits, target)
    assert isinstance(loss, DTensor)
    assert loss.placements == (Replicate(),) * len(sharding[1])
    assert_close(same_on_all_ranks(loss.to_local()), torch_softmax.cross_entropy(LOGITS, TARGET))


@every_sharding
def test_dtensor_statistics_are_the_unsharded_ones(sharding):
    logits = distributed(LOGITS, sharding)
    actual = torch_softmax.cross_entropy_with_stats(logits, TARGET, z_loss=0.1)
    expected = torch_softmax.cross_entropy_with_stats(LOGITS, TARGET, z_loss=0.1)
    assert_close([value(x) for x in actual], list(expected))


def test_dtensor_loss_of_a_mesh_that_lists_its_ranks_in_another_order():
    mesh = DeviceMesh("cpu", [2, 0, 3, 1])
    logits = distribute_tensor(replicated(LOGITS), mesh, [Shard(1)])
    stats = torch_softmax.cross_entropy_with_stats(logits, TARGET)
    assert_close(value(logits), LOGITS)
    assert_close(value(stats.loss), torch_softmax.cross_entropy(LOGITS, TARGET))
    assert_close(value(stats.prediction), LOGITS.argmax(1))


def test_dtensor_loss_has_the_placements_of_its_rows():
    for name, expected in {
        "rows": {"sum": Partial(), "none": Shard(0), "mean": Replicate()},
        "classes": {"sum": Replicate(), "none": Replicate(), "mean": Replicate()},
    }.items():
        logits = distributed(LOGITS, SHARDINGS[name])
        for reduction, placement in expected.items():
            loss = torch_softmax.cross_entropy(logits, TARGET, reduction=reduction)
            assert loss.placements == (placement,)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("classes", {}, {"all_gather_into_tensor": 1}),
        ("classes", {"reduction": "none"}, {"all_gather_into_tensor": 1}),
        ("rows", {}, {"all_reduce": 1}),
        ("rows", {"reduction": "sum"}, {}),
        ("copies", {}, {}),
        ("rows and classes", {}, {"all_gather_into_tensor": 1, "all_reduce": 1}),
    ],
)
def test_dtensor_loss_and_gradient_communicate_once_per_sharded_axis(name, options, expected):
    logits = distributed(LOGITS, SHARDINGS[name]).requires_grad_()
    with CommDebugMode() as communication:
        torch_softmax.cross_entropy(logits, TARGET, WEIGHT, **options).to_local().sum().backward()
    counts = {name.__name__: n for name, n in communication.get_comm_counts().items()}
    assert counts == expected


@every_sharding
def test_dtensor_loss_of_images_is_the_unsharded_one(sharding):
    images = torch.randn(4, 12, 4, dtype=torch.double)
    target = torch.randint(12, (4, 4))
    mesh, placements = sharding
    # rows are sharded along both of their axes
    if placements == [Shard(0), Shard(0)]:
        placements = [Shard(0), Shard(2)]
    placements = [Shard(1) if p == Shard(-1) else p for p in placements]
    whole = images.clone().requires_grad_()
    expected = torch_softmax.cross_entropy(whole, target, label_smoothing=0.1)
    expected.backward()
    logits = distributed(images, (mesh, placements)).requires_grad_()
    loss = torch_softmax.cross_entropy(logits, target, label_smoothing=0.1)
    loss.backward()
    assert_close([value(loss), value(logits.grad)], [expected.detach(), whole.grad])


@every_sharding
@pytest.mark.parametrize("function", FUNCTIONS)
def test_dtensor_softmax_and_its_derivatives_are_the_unsharded_ones(function, sharding):
    whole = LOGITS.clone().requires_grad_()
    logits = distributed(LOGITS, sharding).requires_grad_()
    results = []
    for x in (whole, logits):
        y = function(x, 1)
        (gradient,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        results.append([y, gradient, second])
    assert all(a.placements == logits.placements for a in results[1])
    assert_close([value(x) for x in results[1]], [x.detach() for x in results[0]])


@pytest.mark.parametrize("function", FUNCTIONS)
def test_dtensor_softmax_along_a_sharded_axis_gathers_no_rows(function):
    logits = distributed(LOGITS, SHARDINGS["classes"]).requires_grad_()
    with CommDebugMode() as communication:
        function(logits, 1).pow(3).sum().to_local().sum().backward()
    counts = {name.__name__: n for name, n in communication.get_comm_counts().items()}
    assert counts == {"all_gather_into_tensor": 1, "all_reduce": 1}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_dtensor_softmax_of_extreme_rows_is_torchs(function):
    rows = torch.zeros(4, 8, dtype=torch.double)
    rows[0] = -torch.inf
    rows[1, :2] = -torch.inf
    rows[2] = torch.tensor([-1e4] * 7 + [1e4])
    rows[3, 4] = torch.nan
    y = function(distributed(rows, ((4,), [Shard(1)])), 1)
    torch.testing.assert_close(value(y), function(rows, 1), equal_nan=True)


def mismatches():
    classes, rows = SHARDINGS["classes"], SHARDINGS["rows"]
    mesh = init_device_mesh("cpu", (4,))
    partial = DTensor.from_local(LOGITS.clone(), mesh, [Partial()])
    loss = torch_softmax.cross_entropy
    return {
        r"needs input with placements Shard and Replicate, got \(Partial\(sum\),\)": (
            lambda: loss(partial, TARGET)
        ),
        r"needs axis 1 of input sharded by one axis of the mesh, got \(Shard\(dim=1\), S": (
            lambda: loss(distributed(LOGITS, ((2, 2), [Shard(1), Shard(1)])), TARGET)
        ),
        r"needs target with placements .*, got \(Shard\(dim=0\),\)": (
            lambda: loss(distributed(LOGITS, classes), distributed(TARGET, rows))
        ),
        r"needs weight with placements .*, got \(Shard\(dim=0\),\)": (
            lambda: loss(distributed(LOGITS, rows), TARGET, distributed(WEIGHT, rows))
        ),
        "needs target on the mesh of input": (
            lambda: loss(
                distributed(LOGITS, rows), distributed(TARGET, ((2, 2), [Shard(0), Shard(0)]))
            )
        ),
        "needs input to be a DTensor beside other DTensors, got LocalTensor|Tensor": (
            lambda: loss(LOGITS, distributed(TARGET, rows))
        ),
        "needs inplace=False for a DTensor, got True": (
            lambda: loss(distributed(LOGITS, rows), TARGET, inplace=True)
        ),
        r"needs target of shape \(8,\)": (lambda: loss(distributed(LOGITS, rows), TARGET[:2])),
    }


@pytest.mark.parametrize("index", range(8))
def test_dtensor_errors_name_the_placements(index):
    message, call = list(mismatches().items())[index]
    with pytest.raises((TypeError, ValueError), match=f"cross_entropy {message}"):
        call()


@pytest.mark.parametrize("name", ["rows", "rows and classes"])
@pytest.mark.parametrize("options", [{}, {"denominator": 3}], ids=str)
def test_dtensor_mean_raises_on_all_ranks_for_an_invalid_class_of_one(options, name):
    # a rank that raised before the sum over the ranks would leave the others waiting
    target = TARGET.clone()
    target[1] = 12
    logits = distributed(LOGITS, SHARDINGS[name])
    with (
        CommDebugMode() as communication,
        pytest.raises(IndexError, match=r"on every rank, got 1 that are neither"),
    ):
        torch_softmax.cross_entropy(logits, target, **options)
    counts = {name.__name__: n for name, n in communication.get_comm_counts().items()}
    assert counts["all_reduce"] == 1


@pytest.mark.parametrize("function", FUNCTIONS)
def test_dtensor_softmax_refuses_partial_sums(function):
    mesh = init_device_mesh("cpu", (4,))
    partial = DTensor.from_local(LOGITS.clone(), mesh, [Partial()])
    with pytest.raises(ValueError, match=f"{function.__name__} needs input with placements"):
        function(partial, 1)
