"""The compiled module: installation, tile shapes, threads, and argument errors."""

import shutil
import subprocess
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cpu_losses import loss_and_gradient, some_targets
from torch_softmax._cpu import compiled_cross_entropy

COMPILER = (sysconfig.get_config_var("CC") or "cc").split()[0]
needs_compiled = pytest.mark.skipif(
    compiled_cross_entropy.compiled is None, reason="needs a C compiler: pip install -e ."
)


def test_compiled_code_is_installed_if_there_is_a_compiler(tmp_path):
    source = tmp_path / "extension.c"
    source.write_text("#include <Python.h>\n#include <omp.h>\n")
    include = sysconfig.get_path("include")
    command = [COMPILER, "-fopenmp", f"-I{include}", "-c", source, "-o", tmp_path / "extension.o"]
    if shutil.which(COMPILER) is None or subprocess.run(command).returncode:
        pytest.skip(f"needs the C compiler {COMPILER} with OpenMP, and Python's headers")
    assert compiled_cross_entropy.compiled is not None, "install the package: pip install -e ."


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


@needs_compiled
@pytest.mark.parametrize("shape", TILES)
def test_compiled_tiles_follow_the_layout(shape):
    logits = torch.zeros(shape)
    rows = logits.flatten(2).movedim(1, -1) if logits.dim() > 2 else logits
    assert compiled_cross_entropy.compiled.tile_shape(rows, None) == TILES[shape]


@needs_compiled
@pytest.mark.parametrize(
    ("stride", "rows"),
    [pytest.param((1, 300), 32, id="transposed"), pytest.param((6000, 2), 1, id="every second")],
)
def test_compiled_tiles_follow_the_closer_axis(stride, rows):
    logits = torch.zeros(300 * 6000).as_strided((300, 3000), stride)
    assert compiled_cross_entropy.compiled.tile_shape(logits, None)[0] == rows


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


LOSS_OPTIONS = (None, None, None, 0, "mean", 0.0, 0.0, None, 1.0, 1)


@needs_compiled
@pytest.mark.parametrize(
    ("function", "args"),
    [
        ("cross_entropy_loss", ()),
        ("cross_entropy_forward", ()),
        ("cross_entropy_backward", ()),
        ("tile_shape", ()),
        ("tile_shape", (0, None)),
        ("cross_entropy_loss", (0,) * 13),
        ("cross_entropy_loss", (torch.zeros(2, 3), None, None, *LOSS_OPTIONS)),
        ("cross_entropy_loss", (torch.zeros(2, 3), None, torch.zeros(2).int(), *LOSS_OPTIONS)),
        ("cross_entropy_loss", (torch.zeros(2, 3), None, torch.zeros(3, 3), *LOSS_OPTIONS)),
        (
            "cross_entropy_loss",
            (torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(2).long(), *LOSS_OPTIONS),
        ),
        ("cross_entropy_loss", (torch.zeros(0, 3), None, torch.zeros(0).long(), *LOSS_OPTIONS)),
        (
            "cross_entropy_loss",
            (torch.zeros(2, 3).long(), None, torch.zeros(2).long(), *LOSS_OPTIONS),
        ),
        (
            "cross_entropy_loss",
            (torch.zeros(2, 3, 4, 5), None, torch.zeros(2).long(), *LOSS_OPTIONS),
        ),
        (
            "cross_entropy_loss",
            (torch.zeros(2, 3), None, torch.zeros(2).long(), torch.zeros(4), *LOSS_OPTIONS[1:]),
        ),
        (
            "cross_entropy_loss",
            (
                torch.zeros(2, 3),
                None,
                torch.zeros(2).long(),
                *LOSS_OPTIONS[:3],
                2**64,
                *LOSS_OPTIONS[4:],
            ),
        ),
    ],
)
def test_compiled_functions_refuse_wrong_arguments(function, args):
    with pytest.raises((AttributeError, OverflowError, TypeError, ValueError)):
        getattr(compiled_cross_entropy.compiled, function)(*args)
