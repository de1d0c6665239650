"""What a training step launches: no value is read, and class counts and strides share a kernel."""

import inspect

import pytest
import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode

import torch_softmax
from devices import needs_gpus
from numerics import value_and_gradients
from operator_pairs import each_operator, some_classes

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

    # the mode observes PyTorch's operators outside of the custom ones; these patches observe inside
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


@pytest.mark.parametrize(
    ("n_classes", "kernels"),
    [
        (16384, ["cross_entropy_loss_online_kernel", "cross_entropy_loss_kernel"]),
        # one kernel of losses and gradient would read a longer row twice
        (16385, ["cross_entropy_forward_kernel", "cross_entropy_backward_kernel"]),
    ],
)
def test_losses_per_row_are_read_once_forward_and_once_backward(
    kernel_device, launches, n_classes, kernels
):
    logits = torch.randn(2, n_classes, device=kernel_device, requires_grad=True)
    losses = torch_softmax.cross_entropy(logits, some_classes(logits), reduction="none")
    losses.backward(torch.ones_like(losses))
    assert [kernel.fn.__name__ for kernel, _ in launches] == kernels


# matrices with equal row heads, and matrices with different ones
@pytest.mark.parametrize("gap", [0, 101])
@each_operator
def test_break_21_class_counts_and_strides_share_a_kernel(
    ours, theirs, gap, kernel_device, launches
):
    def launched(n_cols, stride):
        launches.clear()
        value_and_gradients(ours, torch.randn(3, stride, device=kernel_device)[:, :n_cols])
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
    # slices aligned to 16 bytes: unaligned pointers, and matrices with different row heads, compile
    # another kernel, once each
    wide = torch.randn(3, 1100, device="cuda")
    value_and_gradients(ours, torch.randn(3, 1001, device="cuda"))
    value_and_gradients(ours, wide[:, 4:1001])
    compiled = []
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda **call: compiled.append(call["repr"])
    )
    value_and_gradients(ours, torch.randn(3, 1003, device="cuda"))
    value_and_gradients(ours, wide[:, 4:1003])
    assert not compiled
