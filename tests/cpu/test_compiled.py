"""The compiled module: installation, tile shapes, threads, and argument errors."""

import ctypes
import importlib.util
import shutil
import subprocess
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cpu_losses import OPERATORS, loss_and_gradient, some_targets
from torch_softmax._cpu import library

COMPILER = (sysconfig.get_config_var("CXX") or "c++").split()[0]
needs_compiled = pytest.mark.skipif(
    not library.is_available(), reason="needs a C++ compiler: pip install -e ."
)


def test_compiled_code_is_installed_if_there_is_a_compiler(tmp_path):
    source = tmp_path / "library.cpp"
    source.write_text("#include <omp.h>\n#include <dlfcn.h>\n")
    command = [COMPILER, "-fopenmp", "-c", source, "-o", tmp_path / "library.o"]
    if shutil.which(COMPILER) is None or subprocess.run(command).returncode:
        pytest.skip(f"needs the C++ compiler {COMPILER} with OpenMP")
    assert library.is_available(), "install the package: pip install -e ."


# rows and classes of a tile: one row, with its classes rounded up, where rows are few or long; rows
# side by side, more of them in the class-strided layout, and none in a layout that is only strided
TILES = {
    (1, 2): (1, 16),
    (7, 10): (1, 16),
    (8, 10): (16, 10),
    (64, 10): (64, 10),
    (9000, 7): (64, 7),
    (200, 128): (64, 128),
    (200, 129): (1, 144),
    (3, 50257): (1, 50272),
    (3, 10, 7): (1, 16),
    (2, 5000, 9): (16, 5000),
    (3, 10, 70): (80, 10),
    (2, 21, 40, 50): (256, 21),
    (2, 200, 300): (160, 200),
    (2, 2000, 300): (32, 2000),
}


def tile_shape(logits):
    """Rows and classes of a tile of logits, the class axis last."""
    n = logits.dim()
    shape = (ctypes.c_int64 * 2)()
    arrays = ((ctypes.c_int64 * n)(*logits.shape), (ctypes.c_int64 * n)(*logits.stride()))
    library.load().tile_shape(ctypes.c_int64(n), *arrays, shape)
    return tuple(shape)


@needs_compiled
@pytest.mark.parametrize("shape", TILES)
def test_compiled_tiles_follow_the_layout(shape):
    logits = torch.zeros(shape)
    rows = logits.flatten(2).movedim(1, -1) if logits.dim() > 2 else logits
    assert tile_shape(rows) == TILES[shape]


@needs_compiled
@pytest.mark.parametrize(
    ("stride", "rows"),
    [pytest.param((1, 300), 32, id="transposed"), pytest.param((6000, 2), 1, id="every second")],
)
def test_compiled_tiles_follow_the_closer_axis(stride, rows):
    logits = torch.zeros(300 * 6000).as_strided((300, 3000), stride)
    assert tile_shape(logits)[0] == rows


@needs_compiled
@pytest.mark.parametrize("shape", [(5000, 10), (40, 1000), (3, 1000, 21), (600, 300)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_compiled_results_do_not_depend_on_the_threads(shape, dtype):
    logits = torch.randn(shape).to(dtype)
    target = some_targets(logits)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(loss_and_gradient(logits, target))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@needs_compiled
def test_compiled_code_runs_in_many_threads_at_once():
    batches = [(torch.randn(40, 1000), torch.randint(1000, (40,))) for _ in range(16)]
    expected = [loss_and_gradient(*batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        actual = pool.map(loss_and_gradient, *zip(*batches, strict=True))
        for result, right in zip(actual, expected, strict=True):
            assert all(map(torch.equal, result, right))


@needs_compiled
@pytest.mark.parametrize("shape", [(2000, 10), (100, 300)])
def test_compiled_code_stays_in_a_row_whose_target_changes_meanwhile(shape):
    logits, target = torch.randn(shape), torch.zeros(shape[0], dtype=torch.long)
    stop = threading.Event()

    def write():
        while not stop.is_set():
            target.fill_(2**40)
            target.zero_()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(200):
            try:
                _, dlogits = loss_and_gradient(logits, target)
            except IndexError:
                continue
            assert dlogits.isfinite().all()
    finally:
        stop.set()
        writer.join()


LOGITS = torch.zeros(2, 3)
CLASSES = torch.zeros(2, dtype=torch.long)


@needs_compiled
@pytest.mark.parametrize(
    ("args", "requirement"),
    [
        ((torch.tensor(1.0), CLASSES), "a class axis"),
        ((torch.zeros(2, 0), CLASSES), "at least one class"),
        ((LOGITS.long(), CLASSES), "floating-point tensors"),
        ((LOGITS, CLASSES[:1]), "a target for each row"),
        ((LOGITS, CLASSES.view(2, 1, 1)), "a target for each row"),
        ((LOGITS, torch.zeros(3, 3)), "probabilities in the shape of logits"),
        ((LOGITS, torch.zeros(2)), "probabilities in the shape of logits"),
        ((LOGITS, CLASSES, None, torch.zeros(2)), "one number as denominator"),
        ((LOGITS, CLASSES, None, torch.zeros(0).long()), "one number as denominator"),
        ((LOGITS, torch.zeros(2, 3).long()), "floating-point tensors"),
        ((LOGITS, CLASSES, torch.zeros(4)), "a weight of each class"),
        ((LOGITS, CLASSES, torch.zeros(3, 1)), "a weight of each class"),
        ((LOGITS, CLASSES, None, None, torch.int64), "floating-point tensors"),
    ],
)
def test_compiled_loss_refuses_wrong_arguments(args, requirement):
    with pytest.raises(ValueError, match=f"cross_entropy needs {requirement}"):
        OPERATORS.cross_entropy_loss(*args)


@needs_compiled
def test_compiled_gradient_refuses_coefficients_of_other_rows():
    rows = torch.zeros(2)
    for stats, a, b in [(rows, rows, rows), (LOGITS[:, :2], rows[:1], rows)]:
        with pytest.raises(ValueError, match="a coefficient of each row"):
            OPERATORS.cross_entropy_backward(
                LOGITS, CLASSES, None, stats, a, b, None, None, 1.0, None
            )


@needs_compiled
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 1, 3), (3, 1, 0, 2), (1, 3, 2, 0)])
@pytest.mark.parametrize("step", [1, 2])
def test_compiled_loss_takes_batch_dims_that_do_not_merge(order, step):
    logits = torch.randn(6, 5, 4, 8).permute(order)[::step, :, ::step]
    target = some_targets(logits)
    actual = loss_and_gradient(logits, target)
    expected = loss_and_gradient(logits.contiguous(), target)
    torch.testing.assert_close(actual, expected)
    assert actual[1].stride() == torch.empty_like(logits).stride()


@needs_compiled
def test_compiled_loss_takes_any_number_of_batch_dims():
    logits = torch.randn((2,) * 18).permute(*range(17, -1, -1))
    target = torch.randint(2, logits.shape[:-1])
    expected = loss_and_gradient(logits.contiguous(), target)
    torch.testing.assert_close(loss_and_gradient(logits, target), expected)


def test_library_that_does_not_load_leaves_the_operators_in_python(tmp_path, monkeypatch):
    broken = tmp_path / "operators.so"
    broken.write_bytes(b"no library")
    spec = importlib.util.spec_from_file_location("operators", broken)
    monkeypatch.setattr(library, "find_spec", lambda name: spec)
    assert library.load.__wrapped__() is None
