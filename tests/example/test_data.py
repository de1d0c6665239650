"""The data set: found, downloaded, checked, or replaced by drawn garments."""

import functools
import gc
import gzip
import hashlib
import http.server
import socket
import sys
import threading
import time
import warnings

import pytest
import torch
from example_runs import (
    DRAWN_PREFIX,
    N_HELD_OUT,
    SMALL,
    empty,
    flip_bit,
    run_and_read_error,
    truncate,
)

import train_fashion
from torch_softmax.fashion import data, download
from torch_softmax.fashion.drawn import draw_garments

# urllib leaves the socket of a failed request to the garbage collector, which warns of it whenever
# it runs
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture
def no_local_data(tmp_path, monkeypatch):
    """Neither Debian's files nor a cache; returns the cache folder that a download would fill."""
    monkeypatch.setattr(data, "DEBIAN_FOLDER", tmp_path / "no-debian")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "torch_softmax" / "fashion-mnist"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def served_files(small_files, tmp_path, monkeypatch):
    """The .gz files that torchvision downloads in this test, from a server on loopback."""
    datasets = pytest.importorskip("torchvision.datasets")
    folder = tmp_path / "served"
    folder.mkdir()
    for path in small_files.iterdir():
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    resources = [
        (path.name, hashlib.md5(path.read_bytes()).hexdigest()) for path in sorted(folder.iterdir())
    ]
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
        monkeypatch.setattr(datasets.FashionMNIST, "resources", resources)
        for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(variable, raising=False)
        yield folder
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.skipif(
    not data.DEBIAN_FOLDER.exists(), reason="needs Debian's package dataset-fashion-mnist"
)
def test_data_of_debian_pass_the_check(monkeypatch):
    monkeypatch.setattr(data, "N_HELD_OUT", 2_000)
    found = data.load_data("fashion-mnist", None, 58_000, 10_000)
    assert found.train.images.shape == (58_000, 1, 28, 28)
    assert found.held_out.images.shape == (2_000, 1, 28, 28)
    assert found.test.images.shape == (10_000, 1, 28, 28)
    labels = torch.cat([found.train.labels, found.held_out.labels])
    assert labels.bincount().tolist() == [6000] * 10
    assert found.test.labels.bincount().tolist() == [1000] * 10
    # published with the data set
    images = torch.cat([found.train.images, found.held_out.images])
    assert (images / 255).mean().item() == pytest.approx(0.28604, abs=1e-5)


@pytest.mark.parametrize("compressed", [False, True])
def test_data_are_read_as_they_were_written(small_files, compressed):
    if compressed:
        for path in small_files.iterdir():
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    images, labels = draw_garments(N_HELD_OUT + 320, seed=N_HELD_OUT + 320)
    read = data.read_split(small_files, "train")
    assert torch.equal(read.images, images)
    assert torch.equal(read.labels, labels)


def set_label_200(path):
    content = bytearray(path.read_bytes())
    content[-1] = 200
    path.write_bytes(content)


def truncate_compressed(path):
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()


def rename_as_compressed(path):
    path.rename(f"{path}.gz")


@pytest.mark.parametrize(
    "damage",
    [truncate, empty, flip_bit, set_label_200, truncate_compressed, rename_as_compressed],
)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_data_that_are_damaged_are_refused_by_name(capsys, small_files, name, damage):
    damage(small_files / name)
    files = ["--dataset", "auto", "--data-dir", str(small_files)]
    code, line = run_and_read_error(capsys, *SMALL, *files)
    assert code == 3
    assert str(small_files / name) in line
    assert data.SHA256_OF_FILES[name] in line


def test_data_that_are_missing_are_refused_by_name(capsys, small_files):
    (small_files / "t10k-labels-idx1-ubyte").unlink()
    files = ["--dataset", "auto", "--data-dir", str(small_files)]
    code, line = run_and_read_error(capsys, *SMALL, *files)
    assert code == 3
    assert str(small_files / "t10k-labels-idx1-ubyte") in line


def test_data_of_debian_come_first(small_files, monkeypatch):
    monkeypatch.setattr(data, "DEBIAN_FOLDER", small_files)
    found = data.load_data("auto", None, 320, 100)
    assert found.source == f"Fashion-MNIST from {small_files}"
    assert len(found.train.labels) == 320 and len(found.held_out.labels) == N_HELD_OUT


def test_data_of_debian_that_are_damaged_are_not_replaced(capsys, small_files, monkeypatch):
    flip_bit(small_files / "train-labels-idx1-ubyte")
    monkeypatch.setattr(data, "DEBIAN_FOLDER", small_files)
    code, line = run_and_read_error(capsys, *SMALL, "--dataset", "auto")
    assert code == 3
    assert str(small_files / "train-labels-idx1-ubyte") in line


def test_download_is_kept_and_checked(served_files, no_local_data):
    found = data.load_data("fashion-mnist", None, 320, 100)
    assert found.source == f"Fashion-MNIST from {no_local_data}"
    names = {path.name for path in no_local_data.iterdir()}
    assert names == set(data.SHA256_OF_FILES)
    for path in served_files.iterdir():
        path.unlink()
    data.load_data("fashion-mnist", None, 320, 100)
    flip_bit(no_local_data / "t10k-images-idx3-ubyte")
    with pytest.raises(data.DataError, match=str(no_local_data / "t10k-images-idx3-ubyte")):
        data.load_data("fashion-mnist", None, 320, 100)


def test_download_that_is_incomplete_leaves_nothing(capfd, served_files, no_local_data):
    (served_files / "train-labels-idx1-ubyte.gz").unlink()
    assert train_fashion.run([*SMALL, "--dataset", "fashion-mnist"]) == 3
    assert list(no_local_data.iterdir()) == []
    reason = capfd.readouterr().err.splitlines()[-1]
    assert "train-labels-idx1-ubyte.gz" in reason and "404" in reason


def test_download_that_is_slow_continues(served_files, no_local_data, monkeypatch):
    # each file starts within the time limit, and all of them together take longer
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 1.0)
    answer = QuietHandler.do_GET
    monkeypatch.setattr(QuietHandler, "do_GET", lambda self: (time.sleep(0.25), answer(self)))
    start = time.monotonic()
    download.download_fashion_mnist(no_local_data, data.SHA256_OF_FILES)
    assert time.monotonic() - start > 1.5
    assert len(list(no_local_data.iterdir())) == 4


def test_download_without_a_network_says_how_to_get_the_data(capsys, no_local_data, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    # a port that is bound and does not listen
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
        code, line = run_and_read_error(capsys, *SMALL, "--dataset", "fashion-mnist")
    assert code == 3
    assert address in line and "dataset-fashion-mnist" in line and "--data-dir" in line


def test_download_without_an_answer_ends_in_time(no_local_data, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    assert download.TIMEOUT_SECONDS <= 10
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 1)
    # accepts connections and never answers
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [address])
        start = time.monotonic()
        found = data.load_data("auto", None, 320, 100)
        seconds = time.monotonic() - start
    assert seconds < 10
    assert "no byte arrived for 1 seconds" in found.source and "--data-dir" in found.source
    assert found.prefix == DRAWN_PREFIX


def test_drawn_garments_stand_in_without_torchvision(capsys, no_local_data, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    result = train_fashion.main([*SMALL, "--dataset", "auto"])
    lines = capsys.readouterr().out.splitlines()
    assert result.source.startswith("drawn garments, because ")
    assert "torchvision does not import" in lines[0] and "--data-dir" in lines[0]
    assert all(line.startswith(DRAWN_PREFIX) for line in lines)


def test_drawn_garments_are_the_same_for_the_same_seed():
    first, second = (draw_garments(500, seed=3) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], draw_garments(500, seed=4)[0])


def test_drawn_garments_are_balanced_and_varied():
    images, labels = draw_garments(1000, seed=0)
    assert images.shape == (1000, 1, 28, 28) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [100] * 10
    assert len(images.flatten(1).unique(dim=0)) == 1000
    # neither blank nor full
    assert images.float().mean(dim=(1, 2, 3)).min() > 2
    assert (images > 128).float().mean(dim=(1, 2, 3)).max() < 0.6
