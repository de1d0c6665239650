"""The contents of the wheel that pip builds from this checkout."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from torch_softmax._cpu import library

ROOT = Path(__file__).parents[1]
# what a build needs, so that one leaves nothing in the checkout
SOURCES = ["LICENSE", "README.md", "pyproject.toml", "torch_softmax", "triton_kernels"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(path, source / name, ignore=ignored)
        else:
            shutil.copy(path, source)
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    # for one processor, which is compiled three times as fast as for all
    flags = {"CFLAGS": "-mavx2"} if platform.machine() == "x86_64" else {}
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", *options, source],
        env=os.environ | flags,
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture
def names(wheel):
    return zipfile.ZipFile(wheel).namelist()


def test_wheel_has_one_package(names):
    folders = {name.partition("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"torch_softmax"}


def test_wheel_has_the_kernels_and_the_types(names):
    kernels = {path.name for path in (ROOT / "triton_kernels").glob("*.py")}
    assert {name for name in names if name.startswith("torch_softmax/_kernels/")} == {
        f"torch_softmax/_kernels/{name}" for name in kernels
    }
    assert "torch_softmax/py.typed" in names


def test_wheel_has_every_module_of_the_checkout(names):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "torch_softmax").rglob("*.py")}
    assert modules <= set(names)


@pytest.mark.skipif(not library.is_available(), reason="needs a C++ compiler")
def test_wheel_serves_every_python_from_3_11_on(wheel, names):
    assert "-cp311-abi3-" in wheel.name
    suffix = ".pyd" if sysconfig.get_platform().startswith("win") else ".abi3.so"
    assert f"torch_softmax/_cpu/operators{suffix}" in names
