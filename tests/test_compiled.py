"""The compiled loss: which schedule runs, what it does not serve, and how exact it is.

What every path must give, the tests with the fixture ``device`` ask of it too.
"""

import math
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import torch_softmax
from devices import NOT_COMPILED
from numerics import assert_as_accurate_as_torch
from torch_softmax._cpu import compiled_cross_entropy
from torch_softmax.benchmark.memory import peak_bytes_on_cpu

COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]
DTYPES = (torch.float32, torch.bfloat16)
WEIGHED = {"label_smoothing": 0.1, "z_loss": 0.01}


class Tokens(torch.Tensor):
    pass


@pytest.fixture
def calls(monkeypatch):
    """The arguments of each call of compiled code."""
    compiled, made = compiled_cross_entropy.compiled, []

    def recording(*args):
        made.append(args)
        return compiled.cross_entropy(*args)

    recorder = SimpleNamespace(cross_entropy=recording, rows_at_once=compiled.rows_at_once)
    monkeypatch.setattr(compiled_cross_entropy, "compiled", recorder)
    return made


def value_and_gradient(function, logits, *args, **options):
    logits = logits.detach().requires_grad_()
    loss = function(logits, *args, **options)
    return loss.detach(), *torch.autograd.grad(loss, logits)


def some_targets(logits):
    target = torch.randint(logits.shape[1], logits[:, 0].shape)
    target.flatten()[1::5] = -100
    return target


def test_compiled_code_is_there_wherever_a_compiler_is(tmp_path):
    source = tmp_path / "extension.c"
    source.write_text("#include <Python.h>\n#include <omp.h>\n")
    include = sysconfig.get_path("include")
    command = [COMPILER, "-fopenmp", f"-I{include}", "-c", source, "-o", tmp_path / "extension.o"]
    if shutil.which(COMPILER) is None or subprocess.run(command).returncode:
        pytest.skip(f"needs the C compiler {COMPILER} with OpenMP, and Python's headers")
    assert compiled_cross_entropy.compiled is not None, "install the package: pip install -e ."


# by shape how many rows a thread takes at once: one, where they are too few or of too many classes;
# a tile, that is not full, is full, and is not the only one; some tiles, where classes do not lie
# side by side, and one row where these are many
ROWS_AT_ONCE = {
    (1, 2): 1,
    (3, 10): 1,
    (9, 65): 1,
    (40, 1500): 1,
    (3, 50257): 1,
    (8, 10): 64,
    (64, 10): 64,
    (130, 64): 64,
    (9000, 7): 64,
    (3, 10, 7): 1,
    (2, 5000, 9): 64,
    (3, 10, 70): 512,
    (2, 21, 40, 50): 512,
    (2, 200, 300): 128,
    (2, 700, 65): 64,
}


@NOT_COMPILED
@pytest.mark.parametrize("shape", ROWS_AT_ONCE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "reduction": "sum"}], ids=str)
def test_compiled_schedules_are_as_accurate_as_torch(shape, dtype, weighted, options, calls):
    logits = (3 * torch.randn(shape)).to(dtype)
    args = (some_targets(logits), torch.rand(shape[1]).to(dtype) if weighted else None)
    exact_args = (args[0], args[1].double() if weighted else None)
    ours = value_and_gradient(torch_softmax.cross_entropy, logits, *args, **options)
    theirs = value_and_gradient(F.cross_entropy, logits, *args, **options)
    exact = value_and_gradient(F.cross_entropy, logits.double(), *exact_args, **options)
    forward_alone = torch_softmax.cross_entropy(logits, *args, **options)
    for call in calls:
        assert compiled_cross_entropy.compiled.rows_at_once(*call[:2]) == ROWS_AT_ONCE[shape]
    assert len(calls) == 2 and torch.equal(forward_alone, ours[0])
    for actual, baseline, truth in zip(ours, theirs, exact, strict=True):
        assert_as_accurate_as_torch(actual, baseline, truth)


@NOT_COMPILED
@pytest.mark.parametrize("shape", [(12, 10), (3, 70), (2, 10, 9), (2, 10, 3)])
@pytest.mark.parametrize("options", [{}, WEIGHED], ids=str)
def test_compiled_gradient_lies_over_the_logits_in_place(shape, options, calls):
    logits, weight = torch.randn(shape), torch.rand(shape[1])
    target = some_targets(logits)
    expected = value_and_gradient(torch_softmax.cross_entropy, logits, target, weight, **options)
    x = logits.clone().requires_grad_()
    copy = x.clone()
    loss = torch_softmax.cross_entropy(copy, target, weight, inplace=True, **options)
    assert torch.equal(loss.detach(), expected[0])
    assert torch.equal(copy.detach(), expected[1])
    assert torch.equal(torch.autograd.grad(loss, x)[0], expected[1])
    assert len(calls) == 2


@NOT_COMPILED
@pytest.mark.parametrize(
    ("make", "options"),
    [
        pytest.param(lambda x: x.double(), {}, id="float64"),
        pytest.param(lambda x: x.half(), {}, id="float16"),
        pytest.param(lambda x: x.as_subclass(Tokens), {}, id="subclass"),
        pytest.param(lambda x: torch.complex(x, -x).conj().imag, {}, id="negated where it is read"),
        pytest.param(lambda x: torch._efficientzerotensor(x.shape), {}, id="zeros not in memory"),
        pytest.param(lambda x: x, {"softcap": 3.0}, id="softcap"),
        pytest.param(lambda x: x, {"logit_scale": 2.0}, id="logit_scale"),
        pytest.param(lambda x: x, {"reduction": "none"}, id="none"),
        pytest.param(lambda x: x, {"weight": torch.ones(9).requires_grad_()}, id="weight's"),
    ],
)
def test_compiled_code_leaves_alone_what_it_does_not_serve(make, options, calls):
    logits = make(torch.randn(4, 9))
    target = torch.tensor([0, 3, 8, -100])
    loss = torch_softmax.cross_entropy(logits, target, **options)
    plain = logits.as_subclass(torch.Tensor).double() * options.pop("logit_scale", 1.0)
    softcap = options.pop("softcap", math.inf)
    plain = plain if softcap == math.inf else softcap * torch.tanh(plain / softcap)
    options = {k: v.detach().double() if torch.is_tensor(v) else v for k, v in options.items()}
    expected = F.cross_entropy(plain, target, **options)
    assert not calls
    torch.testing.assert_close(
        loss.as_subclass(torch.Tensor), expected, check_dtype=False, rtol=1e-3, atol=1e-6
    )


@NOT_COMPILED
@pytest.mark.parametrize("shape", [(5, 10), (5, 100)])
def test_compiled_code_serves_any_target_and_weight(shape, calls):
    logits = torch.randn(shape)
    target = torch.arange(10)[::2]
    weight = torch.rand(2 * shape[1], dtype=torch.float64)[::2]
    expected = torch_softmax.cross_entropy(logits.double(), target, weight)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        loss = torch_softmax.cross_entropy(logits, target.to(dtype), weight)
        torch.testing.assert_close(loss, expected.float())
    assert len(calls) == 3


@NOT_COMPILED
@pytest.mark.parametrize("shape", [(5000, 10), (40, 1000), (3, 21, 1000)])
def test_compiled_results_do_not_depend_on_the_threads(shape, calls):
    logits = torch.randn(shape)
    target = some_targets(logits)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(value_and_gradient(torch_softmax.cross_entropy, logits, target))
    finally:
        torch.set_num_threads(before)
    assert [call[-1] for call in calls] == [1, 2, 3]
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@NOT_COMPILED
def test_compiled_code_runs_in_many_threads_at_once():
    batches = [(torch.randn(40, 1000), torch.randint(1000, (40,))) for _ in range(16)]
    expected = [value_and_gradient(torch_softmax.cross_entropy, *batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        actual = pool.map(
            partial(value_and_gradient, torch_softmax.cross_entropy), *zip(*batches, strict=True)
        )
        for result, right in zip(actual, expected, strict=True):
            assert all(map(torch.equal, result, right))


# exponentials from 1 to where nothing is left of them
@NOT_COMPILED
@pytest.mark.parametrize("n_copies", [1, 20])
def test_compiled_exponential_is_exact_down_to_the_last_normal_number(n_copies):
    below = torch.linspace(0, 110, 5000)
    logits = torch.stack([torch.zeros_like(below), -below], 1).repeat_interleave(n_copies, 1)
    target = torch.zeros(5000, dtype=torch.long)
    _, dlogits = value_and_gradient(torch_softmax.cross_entropy, logits, target, reduction="sum")
    exact = torch.softmax(logits.double(), 1)[:, -1]
    float32 = torch.finfo(torch.float32)
    error = (dlogits[:, -1].double() - exact).abs()
    assert (error <= 4 * float32.eps * exact + float32.tiny).all()


@NOT_COMPILED
@pytest.mark.parametrize("n_classes", [1, 2, 3, 5, 7, 11, 64, 65, 1000, 128256])
def test_compiled_logarithm_is_exact(n_classes):
    logits = torch.full((9, n_classes), 5.0)
    loss = torch_softmax.cross_entropy(logits, torch.zeros(9, dtype=torch.long))
    assert loss.item() == pytest.approx(math.log(n_classes), rel=2**-23, abs=0)


@NOT_COMPILED
@pytest.mark.parametrize("shape", [(64, 10), (5, 300)])
def test_compiled_gradient_in_bfloat16_is_the_one_in_float32_rounded(shape):
    logits = torch.randn(shape).bfloat16()
    target = some_targets(logits)
    loss, dlogits = value_and_gradient(torch_softmax.cross_entropy, logits, target)
    wide_loss, wide_dlogits = value_and_gradient(
        torch_softmax.cross_entropy, logits.float(), target
    )
    assert torch.equal(loss, wide_loss.bfloat16())
    assert torch.equal(dlogits, wide_dlogits.bfloat16())


@NOT_COMPILED
@pytest.mark.parametrize("shape", [(12, 10), (12, 100)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_nan_stays_in_its_row(shape, dtype):
    logits = torch.randn(shape).to(dtype)
    logits[3, 4] = torch.nan
    logits[5, 0] = torch.inf
    logits[7] = -torch.inf
    logits[9] = torch.nan
    target = torch.arange(12) % 10
    target[9] = -100
    loss, dlogits = value_and_gradient(torch_softmax.cross_entropy, logits, target)
    _, expected = value_and_gradient(F.cross_entropy, logits.float(), target)
    expected[9] = 0  # where PyTorch's is NaN, although the row does not count
    assert loss.isnan()
    assert torch.equal(dlogits.isnan(), expected.isnan())
    assert (dlogits[9] == 0).all()


@NOT_COMPILED
@pytest.mark.parametrize("shape", [(12, 10), (3, 100)])
@pytest.mark.parametrize("bad", [-1, 100, 2**40, -(2**63)])
def test_compiled_code_writes_nothing_where_a_target_is_no_class(shape, bad, calls, monkeypatch):
    leaf = torch.randn(shape, requires_grad=True)
    logits = leaf * 1
    target = torch.arange(shape[0]) % 10
    target[-1] = bad
    with pytest.raises(IndexError) as ours:
        torch_softmax.cross_entropy(logits, target, inplace=True)
    assert torch.equal(logits, leaf) and len(calls) == 1
    monkeypatch.setattr(compiled_cross_entropy, "compiled", None)
    with pytest.raises(IndexError) as composed:
        torch_softmax.cross_entropy(leaf, target)
    assert str(ours.value) == str(composed.value)


@NOT_COMPILED
@pytest.mark.parametrize(
    ("stride", "rows"),
    [pytest.param((1, 300), 64, id="transposed"), pytest.param((6000, 2), 1, id="every second")],
)
def test_compiled_schedule_follows_the_closer_axis(stride, rows):
    logits = torch.zeros(300 * 6000).as_strided((300, 3000), stride)
    assert compiled_cross_entropy.compiled.rows_at_once(logits, None) == rows


@NOT_COMPILED
def test_compiled_code_meets_no_tensor_without_memory(calls):
    logits, target = torch.randn(4, 9), torch.tensor([0, 3, 8, -100])
    functional = torch._to_functional_tensor(logits)
    loss = torch._from_functional_tensor(torch_softmax.cross_entropy(functional, target))
    torch.testing.assert_close(loss, F.cross_entropy(logits, target))
    assert not calls


@NOT_COMPILED
@pytest.mark.parametrize(
    "args",
    [
        (),
        (0,) * 9,
        (torch.zeros(2, 3), None, None, None, 0, True, 0.0, 0.0, 1),
        (torch.zeros(2, 3), torch.zeros(3, 2), None, None, 0, True, 0.0, 0.0, 1),
        (torch.zeros(0, 3), None, None, None, 0, True, 0.0, 0.0, 1),
        (torch.zeros(2, 3, 4, 5), None, None, None, 0, True, 0.0, 0.0, 1),
        (torch.zeros(2, 3), None, torch.zeros(2), None, 2**64, True, 0.0, 0.0, 1),
        (torch.zeros(2, 3), None, torch.zeros(2), None, 0, True, "0", 0.0, 1),
    ],
)
def test_compiled_function_refuses_wrong_arguments(args):
    with pytest.raises((AttributeError, OverflowError, TypeError, ValueError)):
        compiled_cross_entropy.compiled.cross_entropy(*args)


@NOT_COMPILED
def test_compiled_step_takes_one_matrix_beside_its_input_and_in_place_none():
    x = torch.randn(4096, 1000)
    target = torch.randint(1000, (4096,))

    def step(logits, inplace):
        torch_softmax.cross_entropy(logits, target, inplace=inplace).backward()

    peaks = [
        peak_bytes_on_cpu(partial(step, x.clone().requires_grad_() + 0, inplace)) / x.nbytes
        for inplace in (False, True)
    ]
    assert peaks[0] < 1.05 and peaks[1] < 0.05


@NOT_COMPILED
def test_compiled_code_is_no_constant_of_a_graph(calls):
    target, logits = torch.tensor([1, 0, 2]), torch.randn(3, 4)
    graph = make_fx(lambda x: torch_softmax.cross_entropy(x, target), pre_dispatch=True)
    torch.testing.assert_close(graph(torch.zeros(3, 4))(logits), F.cross_entropy(logits, target))
    assert not calls


@NOT_COMPILED
@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_compiled_code_is_no_constant_of_a_trace(calls):
    target = torch.tensor([1, 0, 2])
    traced = torch.jit.trace(
        lambda x: torch_softmax.cross_entropy(x, target), torch.zeros(3, 4), check_trace=False
    )
    logits = torch.randn(3, 4)
    torch.testing.assert_close(traced(logits), F.cross_entropy(logits, target))
    assert not calls
