"""Fashion-MNIST: where its files are, and their contents, checked."""

import gzip
import hashlib
import os
import zlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torch_softmax.fashion import download
from torch_softmax.fashion.drawn import draw_garments
from torch_softmax.fashion.errors import DataError, NoDataError, one_line

# of the uncompressed contents: packages compress the same data differently
SHA256_OF_FILES = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
HOW_TO_GET_THE_DATA = (
    "install Debian's package dataset-fashion-mnist, or download the four files that "
    "github.com/zalandoresearch/fashion-mnist links to and name their folder with --data-dir"
)
# the first training images are held out for calibration: a temperature needs few images, and the
# accuracy needs the rest
N_TRAIN, N_HELD_OUT, N_TEST = 58_000, 2_000, 10_000
NOT_FASHION_MNIST = "[drawn garments, not Fashion-MNIST] "


class Split(NamedTuple):
    """Images, uint8 of shape (n, 1, 28, 28), and their labels, int64 of shape (n,)."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


class Data(NamedTuple):
    """What to train on, to calibrate with and to test on."""

    train: Split
    held_out: Split
    test: Split
    source: str
    prefix: str  # of every line that is printed

    def to(self, device: torch.device) -> "Data":
        train, held_out, test = (split.to(device) for split in self[:3])
        return self._replace(train=train, held_out=held_out, test=test)


def load_data(dataset: str, data_dir: Path | None, train_size: int, test_size: int) -> Data:
    """Fashion-MNIST or, if it was not asked for by name and cannot be had, drawn garments."""
    why = "as asked"
    if dataset != "synthetic":
        try:
            return load_fashion_mnist(data_dir or find_fashion_mnist(), train_size, test_size)
        except NoDataError as error:
            if dataset == "fashion-mnist":
                raise
            why = f"because {error}"
    # fixed seeds: like a data set, the garments do not change with --seed
    return Data(
        train=Split(*draw_garments(train_size, seed=1)),
        held_out=Split(*draw_garments(N_HELD_OUT, seed=3)),
        test=Split(*draw_garments(test_size, seed=2)),
        source=f"drawn garments, {why}",
        prefix=NOT_FASHION_MNIST,
    )


def load_fashion_mnist(folder: Path, train_size: int, test_size: int) -> Data:
    """The data set in a folder."""
    images, labels = read_split(folder, "train")
    test = read_split(folder, "t10k")
    end = N_HELD_OUT + train_size
    return Data(
        train=Split(images[N_HELD_OUT:end], labels[N_HELD_OUT:end]),
        held_out=Split(images[:N_HELD_OUT], labels[:N_HELD_OUT]),
        test=Split(test.images[:test_size], test.labels[:test_size]),
        source=f"Fashion-MNIST from {folder}",
        prefix="",
    )


def find_fashion_mnist() -> Path:
    """The first folder that has all four files; a download fills the last one."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    cache = cache / "torch_softmax" / "fashion-mnist"
    for folder in (DEBIAN_FOLDER, cache):
        if all(locate(folder, name) for name in SHA256_OF_FILES):
            return folder
    try:
        download.download_fashion_mnist(cache, SHA256_OF_FILES)
    except (NoDataError, OSError) as error:
        raise NoDataError(
            f"Fashion-MNIST is neither in {DEBIAN_FOLDER} nor in {cache}, "
            f"and its download failed: {one_line(error)}; {HOW_TO_GET_THE_DATA}"
        ) from error
    return cache


def locate(folder: Path, name: str) -> Path | None:
    """The file, plain or compressed, or None."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if os.path.isfile(path)), None)


def read_split(folder: Path, split: str) -> Split:
    """The images and labels of "train" or "t10k"."""
    images, labels = (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte")
    # an IDX header has 4 bytes and 4 per dimension, and the contents are known from their digests
    return Split(
        images=read_bytes(folder, images)[16:].view(-1, 1, 28, 28),
        labels=read_bytes(folder, labels)[8:].long(),
    )


def read_bytes(folder: Path, name: str) -> Tensor:
    """The uncompressed content of a file of the data set, checked."""
    path = locate(folder, name)
    if path is None:
        raise DataError(f"{folder / name} needs to be there, plain or as .gz, got no such file")
    needs = f"{path} needs contents of SHA-256 {SHA256_OF_FILES[name]}"
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{needs}, got unreadable ones ({one_line(error)})") from error
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256_OF_FILES[name]:
        raise DataError(f"{needs}, got {len(content)} bytes of {found}")
    # a copy, because torch warns about read-only memory
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
