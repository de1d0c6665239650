import hashlib
import shutil
import struct
from contextlib import contextmanager

import pytest
import torch
from example_runs import N_HELD_OUT, SMALL
from filelock import FileLock

import train_fashion
from devices import take_path
from torch_softmax.fashion import data
from torch_softmax.fashion.drawn import draw_garments


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums depend on the number of threads, and the other processes of the tests have one."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@contextmanager
def kernels_not_interpreted():
    """The path of a user without a GPU; conftest chose the interpreter for this process."""
    with pytest.MonkeyPatch.context() as patch:
        take_path("cpu")
        patch.delenv("TRITON_INTERPRET", raising=False)
        yield


@pytest.fixture(autouse=True)
def path_of_a_user():
    with kernels_not_interpreted():
        yield


@pytest.fixture(scope="session", autouse=True)
def few_held_out_images(one_thread):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "N_HELD_OUT", N_HELD_OUT)
        yield


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    """Runs are written into the working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def finished_run(few_held_out_images, tmp_path_factory):
    """The folder of a run of 30 steps that nothing disturbed, and its result."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with kernels_not_interpreted():
        return folder, train_fashion.main([*SMALL, "--epochs", "3", "--out", str(folder)])


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """A copy of the folder of the finished run."""
    return shutil.copytree(finished_run[0], tmp_path / "copy")


@pytest.fixture(scope="session")
def real_run(few_held_out_images, tmp_path_factory):
    """The folder of a short run on Fashion-MNIST, one for all workers of pytest-xdist."""
    if not data.DEBIAN_FOLDER.exists():
        pytest.skip("needs Debian's package dataset-fashion-mnist")
    shared = tmp_path_factory.getbasetemp()
    # a worker's folder lies in that of the test run
    shared = shared.parent if shared.name.startswith("popen-") else shared
    folder = shared / "real_run"
    with FileLock(f"{folder}.lock"):
        if not (folder / "result.json").exists():
            flags = ["--train-size", "19200", "--test-size", "1000", "--epochs", "4"]
            flags += ["--device", "cpu", "--no-report", "--out", str(folder)]
            with kernels_not_interpreted(), pytest.MonkeyPatch.context() as patch:
                # as many as users have, which the distances of outliers depend on
                patch.setattr(data, "N_HELD_OUT", 2_000)
                train_fashion.main(flags)
    return folder


@pytest.fixture
def small_files(tmp_path, monkeypatch):
    """A folder with files like Fashion-MNIST's, with few images, which pass the check."""
    folder = tmp_path / "files"
    folder.mkdir()
    for split, count in (("train", N_HELD_OUT + 320), ("t10k", 100)):
        images, labels = draw_garments(count, seed=count)
        for kind, magic, content in (
            ("images-idx3", 0x803, images[:, 0]),
            ("labels-idx1", 0x801, labels),
        ):
            header = struct.pack(f">{1 + content.ndim}i", magic, *content.shape)
            path = folder / f"{split}-{kind}-ubyte"
            path.write_bytes(header + bytes(content.flatten().tolist()))
    sha256 = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    assert sha256.keys() == data.SHA256_OF_FILES.keys()
    monkeypatch.setattr(data, "SHA256_OF_FILES", sha256)
    return folder
