"""Inputs of a drop-in replacement: layouts, memory, kinds of tensors, dynamic shapes."""

import gc
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, jacfwd, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import torch_softmax
from torch_softmax import cross_entropy, softmax


def compiled(function, backend="aot_eager", **settings):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True, **settings)


def test_compiled_attention_over_a_vmap_has_the_eager_gradient():
    def attention(w):
        return vmap(lambda q: softmax(q @ q.t(), -1) @ q)(w).square().sum()

    w = torch.randn(3, 4, 5, requires_grad=True)
    (actual,) = torch.autograd.grad(compiled(attention)(w), w)
    torch.testing.assert_close(actual, torch.autograd.grad(attention(w), w)[0])


def test_compiled_gradient_of_a_leaf_is_not_0():
    x, y = torch.randn(3, 4), torch.tensor([0, 2, 3])
    actual = compiled(grad(lambda x: cross_entropy(x, y)))(x)
    torch.testing.assert_close(actual, grad(lambda x: F.cross_entropy(x, y))(x))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("cross_entropy", {"target": torch.tensor([0, 2, 3])}), ("log_softmax", {"dim": 1})],
)
def test_forward_mode_over_forward_mode_is_torchs(name, arguments):
    x = torch.randn(3, 4, dtype=torch.double)
    functions = (getattr(library, name) for library in (torch_softmax, F))
    actual, expected = (jacfwd(jacfwd(partial(f, **arguments)))(x) for f in functions)
    torch.testing.assert_close(actual, expected)


def test_compile_makes_one_graph_for_every_length():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    function = compiled(lambda x: softmax(x, -1), backend=count, dynamic=True)
    for length in range(10, 30):
        x = torch.randn(2, length, 6)
        torch.testing.assert_close(function(x), F.softmax(x, -1))
    assert len(graphs) == 1


def test_export_takes_a_dynamic_batch_of_images():
    class Pixels(nn.Module):
        def forward(self, x):
            return softmax(x, 1)

    x = torch.randn(2, 5, 6, 7)
    program = torch.export.export(
        Pixels(), (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},)
    )
    x = torch.randn(3, 5, 6, 7)
    torch.testing.assert_close(program.module()(x), F.softmax(x, 1))


def test_compile_takes_rows_selected_by_a_mask():
    x, y, mask = torch.randn(6, 4), torch.randint(4, (6,)), torch.tensor([1, 0, 1, 1, 0, 1]).bool()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        loss = compiled(lambda x, y, m: cross_entropy(x[m], y[m]))(x, y, mask)
    torch.testing.assert_close(loss, F.cross_entropy(x[mask], y[mask]))


@pytest.mark.parametrize("target", [[0, 1, 2], [0, -100, 2]])
def test_loss_of_rows_can_be_masked_in_place(target, device):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    mask = torch.tensor([False, False, True], device=device)
    results = []
    for library in (torch_softmax, F):
        loss = library.cross_entropy(x, torch.tensor(target, device=device), reduction="none")
        loss[mask] = 0
        results.append((loss, *torch.autograd.grad(loss.sum(), x)))
    torch.testing.assert_close(*results)


def test_softmax_returns_a_new_contiguous_result(device):
    x = torch.randn(2, 5, 3, device=device)
    y = softmax(x.transpose(1, 2), -1)
    torch.testing.assert_close(y.view(-1, 5), F.softmax(x.transpose(1, 2), -1).view(-1, 5))
    for result in (softmax(x, -1), softmax(x, 1), softmax(x.requires_grad_(), 1)):
        result.detach_().mul_(2)
        torch.testing.assert_close(
            result.sum(), torch.tensor(2.0 * x.numel() / 5).to(x), rtol=1, atol=99
        )


def kept_bytes(make):
    """Bytes of tensors that what ``make`` returns keeps alive for its backward."""
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        result = make()
    return sum(kept.values()), result


def living_tensors():
    """Tensors that Python knows of; isinstance would make proxies import what they stand for."""
    gc.collect()
    return [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]


def test_checkpointed_chunks_keep_no_gradient():
    w = torch.randn(50, 8, requires_grad=True)
    hidden, target = torch.randn(64, 8, requires_grad=True), torch.randint(50, (64,))

    def chunk(h, y):
        return cross_entropy(h @ w.t(), y, reduction="sum")

    chunks = list(zip(hidden.chunk(16), target.chunk(16), strict=True))
    before = {id(x) for x in living_tensors()}
    total = sum(checkpoint(chunk, h, y, use_reentrant=False) for h, y in chunks)
    new = [x for x in living_tensors() if id(x) not in before and x.is_floating_point()]
    assert not [x for x in new if x.numel() >= 4 * 50]
    total.backward()
    expected = torch.autograd.grad(F.cross_entropy(hidden @ w.t(), target, reduction="sum"), w)[0]
    torch.testing.assert_close(w.grad, expected)


def test_checkpointed_softmax_leaks_no_memory():
    x = torch.randn(100, 100, requires_grad=True)
    before = len(living_tensors())
    gc.disable()
    try:
        for _ in range(10):
            checkpoint(softmax, x, 1, use_reentrant=False).sum().backward()
        # without a collection
        after = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
    finally:
        gc.enable()
    # the gradient of x
    assert after - before <= 1


@pytest.mark.parametrize(
    ("options", "matrices"),
    [({}, 2), ({"inplace": True}, 1), ({"reduction": "none"}, 1)],
    ids=["default", "inplace", "none"],
)
def test_loss_keeps_as_many_matrices_as_documented(options, matrices):
    leaf, target = torch.randn(64, 50, requires_grad=True), torch.randint(50, (64,))
    logits = leaf * 1
    kept, _ = kept_bytes(lambda: cross_entropy(logits, target, **options))
    assert matrices <= kept / (64 * 50 * 4) < matrices + 0.2


def test_functions_accept_meta_tensors():
    x, y = torch.randn(3, 4, device="meta"), torch.zeros(3, dtype=torch.long, device="meta")
    assert softmax(x, 0).shape == (3, 4)
    assert torch_softmax.log_softmax(x, 1).is_meta
    assert cross_entropy(x.requires_grad_(), y).shape == ()
    assert torch_softmax.cross_entropy_with_stats(x, y).entropy.shape == (3,)


def test_numpy_numbers_and_scalar_tensors_are_accepted():
    x, y = torch.randn(3, 4), torch.tensor([0, 2, 3])
    loss = cross_entropy(
        x,
        y,
        ignore_index=np.int64(2),
        label_smoothing=np.float32(0.125),
        z_loss=torch.tensor(0.5),
        logit_scale=np.float64(2.0),
        softcap=torch.tensor(3),
    )
    options = {"ignore_index": 2, "label_smoothing": 0.125, "z_loss": 0.5}
    assert loss == cross_entropy(x, y, **options, logit_scale=2.0, softcap=3.0)
    assert torch.equal(softmax(x, np.int64(1)), softmax(x, 1))
    assert torch.equal(softmax(x, torch.tensor(1)), softmax(x, 1))


def test_numpy_numbers_are_accepted_in_a_compiled_function():
    def compute(x, y):
        loss = cross_entropy(x, y, ignore_index=np.int64(2), label_smoothing=np.float32(0.125))
        return loss, softmax(x, np.int64(1))

    x, y = torch.randn(3, 4), torch.tensor([0, 2, 3])
    compiled = torch.compile(compute, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, y), compute(x, y))


def test_no_classes_raise_an_error_that_names_the_argument():
    with pytest.raises(IndexError, match="cross_entropy needs input with at least one class"):
        cross_entropy(torch.randn(3, 0), torch.zeros(3, dtype=torch.long))


def test_overlapping_patches_restore_torchs_functions():
    originals = (F.cross_entropy, F.softmax, F.log_softmax, nn.CrossEntropyLoss)
    first, second = torch_softmax.patch(), torch_softmax.patch()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert F.softmax is not originals[1]
    second.__exit__(None, None, None)
    assert originals == (F.cross_entropy, F.softmax, F.log_softmax, nn.CrossEntropyLoss)


def test_threads_share_a_retained_graph():
    x, y = torch.randn(4, 5, requires_grad=True), torch.tensor([0, 2, 3, 1])
    loss = cross_entropy(x, y)
    (expected,) = torch.autograd.grad(loss, x, retain_graph=True)
    wrong = []

    def take_gradients():
        for factor in range(1, 500):
            weight = torch.tensor(float(factor))
            (gradient,) = torch.autograd.grad(loss, x, weight, retain_graph=True)
            if not torch.allclose(gradient, factor * expected):
                wrong.append(factor)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=take_gradients) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


def test_symbolic_trace_records_softmax():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), torch_softmax.Softmax(1))
    x = torch.randn(2, 4)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x, target):
        logits = self.layer(x)
        stats = torch_softmax.cross_entropy_with_stats(logits, target, z_loss=0.1, softcap=3.0)
        loss = cross_entropy(logits, target, label_smoothing=0.1)
        return softmax(logits, 1), torch_softmax.log_softmax(logits, 0), loss, stats.entropy


@pytest.mark.parametrize("strict", [False, True])
def test_exported_program_needs_no_torch_softmax(strict, tmp_path):
    classifier, arguments = Classifier(), (torch.randn(2, 3), torch.tensor([1, 3]))
    program = torch.export.export(classifier, arguments, strict=strict)
    assert "torch_softmax" not in program.graph_module.code
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((arguments, classifier(*arguments)), tmp_path / "expected.pt")
    code = (
        "import sys; sys.modules['torch_softmax'] = None\n"
        "import torch\n"
        f"arguments, expected = torch.load(r'{tmp_path / 'expected.pt'}')\n"
        f"program = torch.export.load(r'{tmp_path / 'program.pt2'}')\n"
        "torch.testing.assert_close(program.module()(*arguments), expected)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_make_fx_traces_plain_operators():
    x, y = torch.randn(3, 4), torch.tensor([0, 2, 3])
    for pre_dispatch in (False, True):
        graph = make_fx(lambda x, y: cross_entropy(x, y), pre_dispatch=pre_dispatch)(x, y)
        assert "torch_softmax" not in graph.code
        torch.testing.assert_close(graph(x, y), F.cross_entropy(x, y))


class Wrapped(torch.Tensor):
    """A subclass as users write it, which counts the functions that it is given to."""

    seen = ()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen = (*cls.seen, func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_tensor_subclasses_see_the_functions():
    x, y = torch.randn(3, 4).as_subclass(Wrapped), torch.tensor([0, 2, 3])
    loss = cross_entropy(x, y)
    assert isinstance(loss, Wrapped)
    assert isinstance(softmax(x, 1), Wrapped)
    assert {cross_entropy, softmax} <= set(Wrapped.seen)
    torch.testing.assert_close(
        loss.as_subclass(torch.Tensor), F.cross_entropy(x, y).as_subclass(torch.Tensor)
    )


@pytest.mark.filterwarnings("ignore")
def test_other_kinds_of_tensors_are_passed_to_torchs_functions():
    rows = [torch.randn(2, 4), torch.randn(3, 4)]
    jagged = torch.nested.nested_tensor(rows, layout=torch.jagged)
    torch.testing.assert_close(softmax(jagged, -1).values(), F.softmax(jagged, -1).values())
    nested = torch.nested.nested_tensor(rows)
    torch.testing.assert_close(
        softmax(nested, -1).to_padded_tensor(0), F.softmax(nested, -1).to_padded_tensor(0)
    )
    masked = torch.masked.masked_tensor(rows[0], rows[0] > 0)
    torch.testing.assert_close(softmax(masked, -1).to_tensor(0), F.softmax(masked, -1).to_tensor(0))
    mkldnn = rows[0].to_mkldnn()
    torch.testing.assert_close(softmax(mkldnn, -1).to_dense(), F.softmax(rows[0], -1))


def test_other_kinds_of_tensors_raise_where_torch_has_no_such_option():
    nested = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged)
    with pytest.raises(TypeError, match="cross_entropy needs a strided input for z_loss"):
        cross_entropy(nested, torch.zeros(5, dtype=torch.long), z_loss=0.1)
    with pytest.raises(TypeError, match="needs input to be a strided tensor"):
        torch_softmax.cross_entropy_with_stats(nested, torch.zeros(5, dtype=torch.long))


def test_saved_tensor_hooks_see_the_gradient():
    x, y = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 2, 3])
    kept, loss = kept_bytes(lambda: cross_entropy(x * 1, y))
    assert kept >= 2 * 48
    with torch.autograd.graph.save_on_cpu():
        loss = cross_entropy(x * 1, y)
    torch.testing.assert_close(
        torch.autograd.grad(loss, x), torch.autograd.grad(F.cross_entropy(x, y), x)
    )


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_recomputes_the_loss(use_reentrant):
    x, y = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 2, 3])
    loss = checkpoint(cross_entropy, x, y, use_reentrant=use_reentrant)
    torch.testing.assert_close(
        torch.autograd.grad(loss, x) if not use_reentrant else (loss.backward(), x.grad)[1:],
        torch.autograd.grad(F.cross_entropy(x, y), x),
    )
