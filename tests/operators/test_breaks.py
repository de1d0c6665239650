"""Where other implementations break, and where PyTorch once did: each a test of ours.

``test_break_NN`` is line NN of a survey of fused softmax and cross-entropy kernels: Liger-Kernel,
Quack, cut-cross-entropy, flash-attn, Unsloth, Megatron-LM, TransformerEngine, FlagGems, fla, and
PyTorch. The missing numbers are about operators that do not exist here.
"""

import inspect
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import KernelInterface

import torch_softmax
from numerics import assert_as_accurate_as_torch

INF, NAN = torch.inf, torch.nan


def needs_gpus(count):
    def mark(test):
        found = torch.cuda.device_count()
        skip = pytest.mark.skipif(found < count, reason=f"needs {count} GPUs, found {found}")
        return pytest.mark.gpu(skip(test))

    return mark


def capped(x, softcap, logit_scale=1.0):
    x = x * logit_scale
    return softcap * torch.tanh(x / softcap)


def value_and_gradient(function, logits, *args, **options):
    logits = logits.detach().requires_grad_()
    y = function(logits, *args, **options)
    # the plain sum of a softmax has no gradient to measure errors by
    is_matrix = y.shape == logits.shape
    dy = torch.linspace(0.5, 1.5, y.shape[-1]).to(y) if is_matrix else y.new_ones(())
    return y.detach(), *torch.autograd.grad(y, logits, dy.expand_as(y))


def assert_agrees(ours, theirs, logits, *args, **options):
    """Value and gradient are as accurate as ``theirs``, with ``theirs`` in float64 as the truth."""

    def widened(x):
        return x.double() if torch.is_tensor(x) and x.is_floating_point() else x

    for actual, baseline, exact in zip(
        value_and_gradient(ours, logits, *args, **options),
        value_and_gradient(theirs, logits, *args, **options),
        value_and_gradient(theirs, widened(logits), *map(widened, args), **options),
        strict=True,
    ):
        assert_as_accurate_as_torch(actual, baseline, exact)


assert_cross_entropy_agrees = partial(assert_agrees, torch_softmax.cross_entropy, F.cross_entropy)
SOFTMAX = (partial(torch_softmax.softmax, dim=1), partial(F.softmax, dim=1))
OPERATORS = [
    pytest.param(*SOFTMAX, id="softmax"),
    pytest.param(
        partial(torch_softmax.log_softmax, dim=1), partial(F.log_softmax, dim=1), id="log_softmax"
    ),
    pytest.param(
        lambda x: torch_softmax.cross_entropy(x, some_classes(x), reduction="none"),
        lambda x: F.cross_entropy(x, some_classes(x), reduction="none"),
        id="cross_entropy",
    ),
    pytest.param(
        lambda x: torch_softmax.cross_entropy(x, some_probabilities(x), reduction="none"),
        lambda x: F.cross_entropy(x, some_probabilities(x), reduction="none"),
        id="cross_entropy of probabilities",
    ),
]
each_operator = pytest.mark.parametrize(("ours", "theirs"), OPERATORS)


def some_classes(logits):
    """A class for each row, the last one for the first row."""
    rows = torch.arange(logits[:, 0].numel(), device=logits.device).view_as(logits[:, 0])
    return (logits.shape[1] - 1 - 7 * rows) % logits.shape[1]


def some_probabilities(logits):
    """Half for the class of :func:`some_classes`, the rest evenly for all."""
    one_hot = F.one_hot(some_classes(logits), logits.shape[1]).movedim(-1, 1)
    return (0.5 * one_hot + 0.5 / logits.shape[1]).to(logits.dtype)


@pytest.fixture
def launches(monkeypatch):
    """Each kernel that is started, with its constants."""
    started = []
    subscript = KernelInterface.__getitem__

    def recording(kernel, grid):
        def start(*args, **constants):
            started.append((kernel, constants))
            return subscript(kernel, grid)(*args, **constants)

        return start

    monkeypatch.setattr(KernelInterface, "__getitem__", recording)
    return started


# 10 and 33 leave padded lanes in a block, 40,000 in the last block of a walked row
@pytest.mark.parametrize("n_cols", [10, 33, 40_000])
@pytest.mark.parametrize("softcap", [2.0, 5.0])
def test_break_01_softcap_ignores_padded_lanes(softcap, n_cols, device):
    # capped logits of -softcap where padding, lifted to -softcap, would weigh as much as a class
    logits = torch.randn(3, n_cols, device=device) - 10 * softcap
    target = some_classes(logits)
    assert_agrees(
        partial(torch_softmax.cross_entropy, softcap=softcap),
        lambda x, target: F.cross_entropy(capped(x, softcap), target),
        logits,
        target,
    )
    stats = torch_softmax.cross_entropy_with_stats(logits.double(), target, softcap=softcap)
    exact = torch.distributions.Categorical(logits=capped(logits.double(), softcap))
    torch.testing.assert_close(stats.lse, capped(logits.double(), softcap).logsumexp(1))
    torch.testing.assert_close(stats.entropy, exact.entropy())


@each_operator
def test_break_02_leading_blocks_of_minus_infinity_are_not_nan(
    ours, theirs, kernel_device, launches
):
    logits = torch.randn(2, 40_000, device=kernel_device)
    logits[:, :20_000] = -INF
    logits[1, :-1] = -INF
    assert_agrees(ours, theirs, logits)
    assert max(constants["BLOCK_COLS"] for _, constants in launches) <= 20_000


@pytest.mark.parametrize("level", [-104.5, -10_000.0, -3e38])
@each_operator
def test_break_03_logits_far_below_zero_are_not_infinite(ours, theirs, level, device):
    assert_agrees(ours, theirs, level + torch.randn(3, 10, device=device))


@each_operator
def test_break_04_logits_serve_a_second_consumer(ours, theirs, device):
    leaf = torch.randn(5, 10, dtype=torch.double, device=device)
    actual, expected = (
        value_and_gradient(lambda x, f=f: (logits := x * 2).exp().mean() + f(logits).sum(), leaf)
        for f in (ours, theirs)
    )
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("grad_enabled", [False, True])
def test_break_04_rows_that_are_ignored_keep_their_logits(grad_enabled, device):
    logits = torch.randn(4, 10, device=device)
    before = logits.clone()
    target = torch.tensor([1, -100, -100, 2], device=device)
    with torch.set_grad_enabled(grad_enabled):
        torch_softmax.cross_entropy(logits.requires_grad_(), target)
    assert torch.equal(logits.detach(), before)


@each_operator
def test_break_05_a_second_backward_is_not_scaled_again(ours, theirs, device):
    logits = torch.randn(5, 10, dtype=torch.double, device=device, requires_grad=True)
    y = ours(logits)
    dy = torch.randn_like(y)
    for scale in (3, 0.5):
        y.backward(scale * dy, retain_graph=True)
    (expected,) = torch.autograd.grad(theirs(logits), logits, 3.5 * dy)
    torch.testing.assert_close(logits.grad, expected)


@each_operator
def test_break_06_a_gradient_penalty_is_differentiated(ours, theirs, device):
    def penalty(function, x):
        (gradient,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        return gradient.square().sum()

    logits = torch.randn(5, 10, dtype=torch.double, device=device)
    actual, expected = (
        value_and_gradient(partial(penalty, function), logits) for function in (ours, theirs)
    )
    assert expected[1].count_nonzero() > 0
    torch.testing.assert_close(actual, expected)


@each_operator
def test_break_06_forward_mode_is_not_silently_zero(ours, theirs, device):
    logits = torch.randn(5, 10, dtype=torch.double, device=device)
    tangent = torch.randn_like(logits)
    actual, expected = (torch.func.jvp(f, (logits,), (tangent,))[1] for f in (ours, theirs))
    assert expected.count_nonzero() > 0
    torch.testing.assert_close(actual, expected)


# the number of rows, and the sum of their weights, pass the largest float16
@pytest.mark.parametrize("reduction", ["mean", "weighted mean", "sum"])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_break_09_half_precision_counts_beyond_65504_rows(dtype, soft, reduction, device):
    # few classes, to be quick, and small losses, whose sum float16 still holds
    logits = torch.tensor([0.0, 5.0], dtype=dtype, device=device).repeat(70_000, 1)
    target = torch.ones(70_000, dtype=torch.long, device=device)
    target = F.one_hot(target).to(dtype) if soft else target
    weight = torch.tensor([3.0, 1.5], device=device) if reduction == "weighted mean" else None
    results = [
        value_and_gradient(
            function,
            logits.to(precision),
            target.to(precision) if soft else target,
            None if weight is None else weight.to(precision),
            reduction=reduction.removeprefix("weighted "),
        )
        for function, precision in (
            (torch_softmax.cross_entropy, dtype),
            (F.cross_entropy, torch.double),
        )
    ]
    for actual, exact in zip(*results, strict=True):
        torch.testing.assert_close(actual, exact.to(dtype))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_break_10_a_confident_rows_gradient_survives_rounding(dtype, soft, device):
    # a probability that rounds to 1: subtracting 1 after that would leave a gradient of 0
    logits = torch.zeros(1, 10, dtype=dtype, device=device)
    logits[0, 3] = 11
    assert logits.float().softmax(1)[0, 3].to(dtype) == 1
    target = torch.tensor([3], device=device)
    target = F.one_hot(target, 10).to(dtype) if soft else target
    _, dlogits = value_and_gradient(torch_softmax.cross_entropy, logits, target)
    target = target.double() if soft else target
    _, exact = value_and_gradient(F.cross_entropy, logits.double(), target)
    # two roundings, as the interpreter truncates to bfloat16
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": torch.finfo(dtype).tiny}
    torch.testing.assert_close(dlogits.double(), exact, **tolerance)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_break_12_probability_0_at_logit_minus_infinity_costs_nothing(reduction, weighted, device):
    logits = torch.randn(4, 12, dtype=torch.double, device=device)
    target = torch.rand_like(logits)
    weight = torch.rand_like(logits[0]) if weighted else None
    possible = torch.arange(12, device=device) % 3 != 1
    logits[:, ~possible] = -INF
    target[:, ~possible] = 0
    actual = value_and_gradient(
        torch_softmax.cross_entropy, logits, target, weight, reduction=reduction
    )
    expected = value_and_gradient(
        F.cross_entropy,
        logits[:, possible],
        target[:, possible],
        weight[possible] if weighted else None,
        reduction=reduction,
    )
    torch.testing.assert_close((actual[0], actual[1][:, possible]), expected)
    assert (actual[1][:, ~possible] == 0).all()


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
            value_and_gradient(compiled, logits, target, weight),
            value_and_gradient(F.cross_entropy, logits, target, weight),
        )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_rows", [0, 5])
def test_break_14_no_counted_row_is_as_in_torch(n_rows, weighted, options, reduction, device):
    logits = torch.randn(n_rows, 10, dtype=torch.double, device=device)
    target = torch.full((n_rows,), -100, device=device)
    weight = torch.rand(10, dtype=torch.double, device=device) if weighted else None
    loss = {"mean": torch.tensor(NAN), "sum": torch.tensor(0.0), "none": torch.zeros(n_rows)}
    expected = (loss[reduction].to(logits), torch.zeros_like(logits))
    options = options | {"reduction": reduction}
    actual = value_and_gradient(torch_softmax.cross_entropy, logits, target, weight, **options)
    torch.testing.assert_close(actual, expected, equal_nan=True)
    stats = torch_softmax.cross_entropy_with_stats(logits, target, weight, **options)
    torch.testing.assert_close(stats.loss, expected[0], equal_nan=True)
    assert stats.lse.shape == stats.entropy.shape == stats.prediction.shape == (n_rows,)


# just outside, outside of what one row and all rows hold, and outside of int32
@pytest.mark.parametrize("bad", [10, -1, 100, 2**31, -(2**62)])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_break_15_a_target_that_is_no_class_never_reads_another_row(bad, reduction, kernel_device):
    logits = torch.randn(4, 10, device=kernel_device)
    target = torch.tensor([1, 2, 3, 4], device=kernel_device)
    weight = torch.rand(10, device=kernel_device)
    options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}
    expected = value_and_gradient(torch_softmax.cross_entropy, logits, target, **options)
    target[1] = bad
    loss, dlogits = value_and_gradient(torch_softmax.cross_entropy, logits, target, **options)
    others = [0, 2, 3]
    if reduction == "none":
        assert torch.equal(loss[others], expected[0][others])
        assert torch.equal(dlogits[others], expected[1][others])
        loss = loss[1]
    assert loss.isnan()
    assert dlogits[1].isnan().all()


@pytest.mark.parametrize("ignore_index", [-100, 10, 2**31, -(2**62)])
def test_break_15_ignore_index_is_never_an_index(ignore_index, device):
    logits = torch.randn(6, 10, dtype=torch.double, device=device)
    target = some_classes(logits)
    weight = torch.rand_like(logits[0])
    kept = [0, 2, 3, 5]
    expected = value_and_gradient(F.cross_entropy, logits[kept], target[kept], weight)
    target[[1, 4]] = ignore_index
    loss, dlogits = value_and_gradient(
        torch_softmax.cross_entropy, logits, target, weight, ignore_index=ignore_index
    )
    torch.testing.assert_close((loss, dlogits[kept]), expected)
    assert (dlogits[[1, 4]] == 0).all()


# the distance of the last row, and of the last class, from the first one
@pytest.mark.parametrize("strides", [(2**30, 1), (1, 2**29)], ids=["rows", "classes"])
@each_operator
@pytest.mark.usefixtures("gigabytes")
def test_break_16_offsets_pass_2_to_the_31(ours, theirs, strides, device):
    logits = spread_out(torch.randn(3, 5, device=device, dtype=torch.half), strides)
    dense = logits.clone(memory_format=torch.contiguous_format)
    assert max(2 * strides[0], 4 * strides[1]) >= 2**31
    torch.testing.assert_close(
        value_and_gradient(ours, logits), value_and_gradient(ours, dense), check_stride=False
    )
    assert_agrees(ours, theirs, dense)


@pytest.mark.usefixtures("gigabytes")
def test_break_16_an_inplace_gradient_passes_2_to_the_31(device):
    leaf = torch.randn(3, 5, device=device, dtype=torch.half, requires_grad=True)
    target = some_classes(leaf)
    expected = value_and_gradient(torch_softmax.cross_entropy, leaf, target)
    logits = spread_out(leaf, (2**30, 1))
    loss = torch_softmax.cross_entropy(logits, target, inplace=True)
    loss.backward()
    torch.testing.assert_close((loss.detach(), leaf.grad), expected)
    torch.testing.assert_close(logits.detach(), leaf.grad, check_stride=False)


def spread_out(dense, strides):
    """``dense`` with such strides: memory that nobody touches is none."""
    torch.use_deterministic_algorithms(False)  # which would fill the gaps
    x = torch.empty_strided(dense.shape, strides, dtype=dense.dtype, device=dense.device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return x.copy_(dense)


@each_operator
def test_break_17_gradients_may_be_expanded(ours, theirs, device):
    logits = torch.randn(4, 10, dtype=torch.double, device=device, requires_grad=True)
    y = ours(logits)
    for dy in (
        torch.tensor(2.0, dtype=torch.double, device=device).expand_as(y),
        torch.rand_like(y[:1]).expand_as(y),
    ):
        (actual,) = torch.autograd.grad(y, logits, dy, retain_graph=True)
        (expected,) = torch.autograd.grad(theirs(logits), logits, dy)
        torch.testing.assert_close(actual, expected)


def test_break_17_a_column_of_targets_need_not_be_contiguous(device):
    """Also pytorch 67167: on CUDA a strided target gave silently wrong losses."""
    logits = torch.randn(6, 10, 4, device=device)
    target = torch.randint(10, (4, 6), device=device).t()
    assert_cross_entropy_agrees(logits, target)
    assert_cross_entropy_agrees(logits[..., 3], target[:, 3])
    assert_cross_entropy_agrees(logits[:1].expand_as(logits), target[:1].expand_as(target))


def test_break_17_pointers_need_not_be_aligned(device):
    # 16-byte loads of the first call must not stay for the second, one element further
    logits = torch.randn(4 * 16 + 1, device=device)
    target = torch.randint(16, (5,), device=device)
    for start in (0, 1):
        shifted = logits[start : start + 64].view(4, 16)
        assert_cross_entropy_agrees(shifted, target[start : start + 4])
        assert_agrees(*SOFTMAX, shifted)


@needs_gpus(2)
@each_operator
def test_break_17_the_tensors_device_need_not_be_the_current_one(ours, theirs):
    logits = torch.randn(4, 10, device="cuda:1")
    with torch.cuda.device(0):
        assert_agrees(ours, theirs, logits)


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.1, NAN, INF])
def test_break_18_a_smoothing_without_meaning_raises(label_smoothing, device):
    logits = torch.zeros(2, 4, device=device)
    target = torch.tensor([0, 1], device=device)
    with pytest.raises(ValueError, match="label_smoothing"):
        torch_softmax.cross_entropy(logits, target, label_smoothing=label_smoothing)


def test_break_18_int32_targets_are_as_good_as_int64(device):
    logits = torch.randn(5, 10, dtype=torch.double, device=device)
    target = some_classes(logits)
    target[1] = -100
    for options in ({}, {"label_smoothing": 0.1, "reduction": "none"}):
        torch.testing.assert_close(
            value_and_gradient(torch_softmax.cross_entropy, logits, target.int(), **options),
            value_and_gradient(F.cross_entropy, logits, target, **options),
        )


STEPS = {
    "plain": {},
    "weighted": {"weight": torch.arange(1.0, 11.0)},
    "all options": {
        "label_smoothing": 0.1,
        "z_loss": 0.1,
        "softcap": 3.0,
        "logit_scale": 2.0,
        "reduction": "sum",
    },
}
each_step = pytest.mark.parametrize("options", STEPS.values(), ids=STEPS)


def on_device(options, device):
    return {name: x.to(device) if torch.is_tensor(x) else x for name, x in options.items()}


def training_step(logits, target, options):
    """What a step of training takes from the operators: losses and the gradient of the logits."""
    probabilities = torch_softmax.softmax(logits, 1)
    stats = torch_softmax.cross_entropy_with_stats(logits, probabilities, **options)
    loss = (
        torch_softmax.cross_entropy(logits, target, **options)
        + (stats.loss + stats.entropy.sum())
        + torch_softmax.log_softmax(probabilities, 1).square().sum()
    )
    return loss.detach(), *torch.autograd.grad(loss, logits)


class NoRead(TorchDispatchMode):
    """Raise where a value of a tensor would have to be known to the host."""

    READS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        indices = args[1] if func is torch.ops.aten.index.Tensor else None
        reads = any(tag in func.tags for tag in self.READS)
        if reads and (indices is None or any(i.dtype == torch.bool for i in indices)):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@each_step
def test_break_19_a_step_reads_no_value(options, kernel_device, monkeypatch):
    def refuse(*_):
        raise AssertionError("a tensor's value was read")

    # the mode sees what PyTorch does outside of our operators, these see what is done inside
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    monkeypatch.setattr(torch, "equal", refuse)
    options = on_device(options, kernel_device)
    logits = torch.randn(5, 10, device=kernel_device, requires_grad=True)
    target = some_classes(logits)
    target[0] = -100
    with NoRead():
        training_step(logits, target, options)


@needs_gpus(1)
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@each_step
def test_break_19_a_step_never_waits_for_the_gpu(options):
    logits = torch.randn(5, 10, device="cuda", requires_grad=True)
    target = some_classes(logits)
    options = on_device(options, "cuda")
    training_step(logits, target, options)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        training_step(logits, target, options)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpus(1)
@each_step
def test_break_19_a_step_can_be_captured_in_a_cuda_graph(options):
    logits = torch.randn(5, 10, device="cuda", requires_grad=True)
    target = some_classes(logits)
    options = on_device(options, "cuda")
    side_stream = torch.cuda.Stream()
    side_stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side_stream):
        training_step(logits, target, options)  # compiles, which a capture cannot
    torch.cuda.current_stream().wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = training_step(logits, target, options)
    for n_ignored in (0, 3):
        with torch.no_grad():
            logits.copy_(torch.randn_like(logits))
            target.copy_(some_classes(logits))
            target[:n_ignored] = -100
        graph.replay()
        torch.testing.assert_close(captured, training_step(logits, target, options))


# one beyond the limit of another library, two that its neighbour refuses, and several blocks
@pytest.mark.parametrize("n_cols", [65_537, 10, 50_257, 131_073])
@each_operator
def test_break_20_any_number_of_columns_is_taken(ours, theirs, n_cols, device):
    assert_agrees(ours, theirs, torch.randn(2, n_cols, device=device))


# matrices whose rows begin at the same places in their words, and some of which do not
@pytest.mark.parametrize("gap", [0, 101])
@each_operator
def test_break_21_class_counts_and_strides_share_a_kernel(
    ours, theirs, gap, kernel_device, launches
):
    def launched(n_cols, stride):
        launches.clear()
        value_and_gradient(ours, torch.randn(3, stride, device=kernel_device)[:, :n_cols])
        return launches.copy()

    first = launched(1001, 1001 + gap)
    assert first
    for n_cols in (999, 1003, 1005, 1007):
        assert launched(n_cols, n_cols + gap) == first
    for kernel, constants in first:
        parameters = inspect.signature(kernel.fn).parameters.values()
        constexprs = {p.name for p in parameters if p.annotation is tl.constexpr}
        assert constexprs <= constants.keys()
        assert all(name.isupper() for name in constexprs)


@needs_gpus(1)
@each_operator
def test_break_21_class_counts_and_strides_compile_once(ours, theirs, monkeypatch):
    # aligned to 16 bytes where it is sliced: pointers that are not compile apart, once, and so do
    # matrices whose rows begin at other places in their words
    wide = torch.randn(3, 1100, device="cuda")
    value_and_gradient(ours, torch.randn(3, 1001, device="cuda"))
    value_and_gradient(ours, wide[:, 4:1001])
    compiled = []
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda **call: compiled.append(call["repr"])
    )
    value_and_gradient(ours, torch.randn(3, 1003, device="cuda"))
    value_and_gradient(ours, wide[:, 4:1003])
    assert not compiled


# what F.cross_entropy returns for extreme rows of logits against class 0
EXTREME_ROWS = {
    "-inf beside the target": ([0.5, -INF, 1.0], {}, torch.isfinite, torch.isfinite),
    "-inf at the target": ([-INF, 0.5, 1.0], {}, torch.isposinf, torch.isfinite),
    "+inf at the target": ([INF, 0.5, 1.0], {}, torch.isnan, torch.isnan),
    "+inf beside the target": ([0.5, INF, 1.0], {}, torch.isnan, torch.isnan),
    "a row of -inf": ([-INF, -INF, -INF], {}, torch.isnan, torch.isnan),
    "NaN": ([0.5, NAN, 1.0], {}, torch.isnan, torch.isnan),
    "smoothing with a -inf class": (
        [0.5, -INF, 1.0],
        {"label_smoothing": 0.1},
        torch.isposinf,
        torch.isfinite,
    ),
}


@pytest.mark.parametrize(
    ("row", "options", "loss_is", "gradient_is"), EXTREME_ROWS.values(), ids=EXTREME_ROWS
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy_copies_torch_on_extreme_rows(
    reduction, row, options, loss_is, gradient_is, device
):
    logits = torch.tensor([row, [1.0, 2.0, 3.0]], device=device)
    target = torch.tensor([0, 1], device=device)
    assert_cross_entropy_agrees(logits, target, reduction=reduction, **options)
    loss, dlogits = value_and_gradient(
        torch_softmax.cross_entropy, logits, target, reduction=reduction, **options
    )
    assert loss_is(loss.flatten()[0])
    assert gradient_is(dlogits[0]).any()


@pytest.mark.parametrize("weight", [[0.0, 0.0, 0.0], [1.0, -1.0, 5.0]], ids=str)
def test_cross_entropy_copies_torch_on_weights_that_sum_to_0(weight, device):
    logits = torch.randn(2, 3, device=device)
    target = torch.tensor([0, 1], device=device)
    weight = torch.tensor(weight, device=device)
    assert_cross_entropy_agrees(logits, target, weight)
    assert not torch_softmax.cross_entropy(logits, target, weight).isfinite()


FILLS = {"NaN": NAN, "inf": INF, "-inf": -INF}
IGNORING = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 0.1},
    "softcap": {"softcap": 5.0},
    "weighted": {"weight": torch.tensor([0.5, 1.0, 2.0])},
}


@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
@pytest.mark.parametrize("options", IGNORING.values(), ids=IGNORING)
def test_cross_entropy_ignores_a_row_whatever_it_holds(options, fill, device):
    logits = torch.randn(3, 3, device=device)
    target = torch.tensor([0, -100, 2], device=device)
    options = on_device(options, device)
    loss, dlogits = value_and_gradient(torch_softmax.cross_entropy, logits, target, **options)
    logits[1] = fill
    filled = value_and_gradient(torch_softmax.cross_entropy, logits, target, **options)
    torch.testing.assert_close(filled, (loss, dlogits), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, -1, 255])
@pytest.mark.parametrize("weighted", [False, True])
def test_issue_smoothing_and_weights_leave_ignored_rows_out(
    weighted, ignore_index, reduction, device
):
    """Pytorch 69339, 72056, 91383: weight[ignore_index] was read; 73205: ignored rows smoothed."""
    logits = torch.randn(6, 3, dtype=torch.double, device=device)
    target = some_classes(logits)
    options = {
        "weight": torch.tensor([0.2, 0.3, 16.0]).to(logits) if weighted else None,
        "label_smoothing": 0.1,
        "reduction": reduction,
    }
    kept = torch.tensor([0, 2, 5], device=device)
    target[[1, 3, 4]] = ignore_index
    loss, dlogits = value_and_gradient(
        torch_softmax.cross_entropy, logits, target, ignore_index=ignore_index, **options
    )
    expected = value_and_gradient(F.cross_entropy, logits[kept], target[kept], **options)
    loss = loss[kept] if reduction == "none" else loss
    torch.testing.assert_close((loss, dlogits[kept]), expected)
    assert (dlogits[[1, 3, 4]] == 0).all()


def test_issue_ignoring_a_class_leaves_its_logits_in_the_softmax(device):
    """Pytorch 63004: ignore_index takes out the rows of a class, not its column."""
    logits = torch.randn(4, 3, device=device)
    target = torch.tensor([1, 0, 2, 0], device=device)
    assert_cross_entropy_agrees(logits, target, ignore_index=0)
    _, dlogits = value_and_gradient(
        torch_softmax.cross_entropy, logits, target, ignore_index=0, reduction="sum"
    )
    torch.testing.assert_close(dlogits[[0, 2], 0], logits.softmax(1)[[0, 2], 0])
    assert (dlogits[[1, 3]] == 0).all()


def test_issue_a_wrong_target_is_not_taken_for_an_ignored_one():
    """Pytorch 12670: -4 beside ignore_index=-1 gave a loss that changed from run to run."""
    with pytest.raises(IndexError, match="got -4"):
        torch_softmax.cross_entropy(
            torch.randn(3, 5), torch.tensor([2, 1, -4]), ignore_index=-1, reduction="none"
        )


def test_issue_kernels_do_not_take_a_wrong_target_for_an_ignored_one(kernel_device):
    """Pytorch 12670, where raising would have to wait for the device."""
    logits = torch.randn(3, 5, device=kernel_device)
    target = torch.tensor([2, -1, -4], device=kernel_device)
    loss = torch_softmax.cross_entropy(logits, target, ignore_index=-1, reduction="none")
    assert loss.isnan().tolist() == [False, False, True]
    assert loss[1] == 0


def test_issue_a_batch_that_is_ignored_does_not_poison_the_parameters(device):
    """Pytorch 116349: the mean of no row is NaN, and training goes on all the same."""
    layer = torch.nn.Linear(4, 3).to(device)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    target = torch.full((5,), -100, device=device)
    logits = layer(torch.randn(5, 4, device=device))
    assert torch_softmax.cross_entropy(logits, target, reduction="none").tolist() == [0] * 5
    loss = torch_softmax.cross_entropy(logits, target)
    loss.backward()
    optimizer.step()
    assert loss.isnan()
    assert torch.equal(layer.weight.detach(), before)
