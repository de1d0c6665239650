import ast
import os
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType

import pytest

import torch_softmax

ROOT = Path(__file__).parents[1]
# folders, and the packages that they are installed as
PACKAGES = {"torch_softmax": "torch_softmax", "triton_kernels": "torch_softmax._kernels"}

# the arrows of the diagram: layers that each layer may import at module level
LAYERS = {
    "torch_softmax._kernels": set(),
    "torch_softmax._atomic_file": set(),
    "torch_softmax._command_line": set(),
    "torch_softmax._layout": set(),
    "torch_softmax._options": set(),
    "torch_softmax._launch": {
        "torch_softmax._kernels",
        "torch_softmax._options",
        "torch_softmax._layout",
    },
    "torch_softmax.reference": {"torch_softmax._layout", "torch_softmax._options"},
    "torch_softmax._cpu": {
        "torch_softmax.reference",
        "torch_softmax._options",
        "torch_softmax._layout",
    },
    "torch_softmax._ops": {
        "torch_softmax._cpu",
        "torch_softmax.reference",
        "torch_softmax._options",
        "torch_softmax._layout",
    },
    "torch_softmax.functional": {
        "torch_softmax._ops",
        "torch_softmax._options",
        "torch_softmax._layout",
    },
    "torch_softmax.distributed": {
        "torch_softmax.functional",
        "torch_softmax._ops",
        "torch_softmax.reference",
        "torch_softmax._options",
        "torch_softmax._layout",
    },
    "torch_softmax.modules": {"torch_softmax.functional"},
    "torch_softmax.patching": {"torch_softmax.functional", "torch_softmax.modules"},
    "torch_softmax.benchmark": {
        "torch_softmax",
        "torch_softmax._atomic_file",
        "torch_softmax._command_line",
    },
    "torch_softmax.fashion": {
        "torch_softmax",
        "torch_softmax.report",
        "torch_softmax.uncertainty",
        "torch_softmax._atomic_file",
        "torch_softmax._command_line",
    },
    "torch_softmax.uncertainty": {"torch_softmax.functional", "torch_softmax._layout"},
    "torch_softmax.report": {
        "torch_softmax.functional",
        "torch_softmax.uncertainty",
        "torch_softmax._atomic_file",
    },
    "torch_softmax": {
        "torch_softmax._ops",
        "torch_softmax.functional",
        "torch_softmax.modules",
        "torch_softmax.patching",
        "torch_softmax.uncertainty",
    },
}
# imports inside functions: the first tensor that needs them imports the kernels, and the code for
# DTensors; the suite of benchmarks measures the kernels without clusters
LATE_IMPORTS = {
    ("torch_softmax._ops.registration", "torch_softmax._launch"),
    (
        "torch_softmax.functional.cross_entropy",
        "torch_softmax.distributed.dtensor_cross_entropy",
    ),
    ("torch_softmax.functional.softmax", "torch_softmax.distributed.dtensor_softmax"),
    ("torch_softmax.benchmark.suite", "torch_softmax._launch.clusters"),
}

# imports inside functions: plots, the progress bar and the measured packages
BENCHMARK_IMPORTS = {"cut_cross_entropy", "liger_kernel", "matplotlib", "quack", "tqdm"}


def module_name(path):
    folder, *parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES[folder], *(parts[:-1] if parts[-1] == "__init__" else parts)])


MODULES = {
    module_name(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")
}


def layer_of(module):
    """``torch_softmax._ops.softmax`` belongs to ``torch_softmax._ops``."""
    return ".".join(module.split(".")[:2])


def modules_of(layer):
    return [module for module in MODULES if layer_of(module) == layer]


def imported_by(module, node):
    """Modules that an import statement names; none for any other node."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    source = resolve_name("." * node.level + (node.module or ""), package)
    # `from package import name` means the module of that name where there is one
    return {f"{source}.{alias.name}" for alias in node.names} & MODULES.keys() or {source}


def imports(module):
    """All modules that a module imports, at module level or inside functions."""
    tree = ast.parse(MODULES[module].read_text())
    return set().union(*(imported_by(module, node) for node in ast.walk(tree)))


def late_imports(module):
    """Modules that a module imports inside functions."""
    functions = [
        node
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    return set().union(
        *(imported_by(module, node) for function in functions for node in ast.walk(function))
    )


def foreign_imports(module, of=imports):
    """Top-level packages that a module imports, except the standard library and this project."""
    names = {name.partition(".")[0] for name in of(module)}
    return names - sys.stdlib_module_names - set(PACKAGES)


def run_python(code):
    """Run code in a fresh interpreter, without Triton's, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_layers_have_an_order():
    TopologicalSorter(LAYERS).prepare()


@pytest.mark.parametrize("module", MODULES)
def test_layers_name_every_module(module):
    assert layer_of(module) in LAYERS, f"give {module} a place in LAYERS and in the design"


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_only_lower_layers(layer):
    upward = {
        f"{module} imports {name}"
        for module in modules_of(layer)
        for name in imports(module)
        if name.partition(".")[0] in PACKAGES
        and layer_of(name) not in LAYERS[layer] | {layer}
        and (module, name) not in LATE_IMPORTS
    }
    assert not upward


@pytest.mark.parametrize(("module", "name"), sorted(LATE_IMPORTS))
def test_layers_reach_upward_only_by_a_late_import(module, name):
    tree = ast.parse(MODULES[module].read_text())
    at_once = set().union(*(imported_by(module, node) for node in tree.body))
    assert name in late_imports(module), f"{module} imports {name} no more: drop the exception"
    assert name not in at_once, f"{module} imports {name} without being called"


@pytest.mark.parametrize("module", modules_of("torch_softmax._kernels"))
def test_layers_of_kernels_import_only_triton(module):
    assert foreign_imports(module) <= {"triton"}


@pytest.mark.parametrize("module", modules_of("torch_softmax._kernels"))
def test_layers_of_kernels_import_each_other_relatively(module):
    # so that the folder also works under its own name in a checkout
    imported = [
        node
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.ImportFrom)
    ]
    assert not [node for node in imported if (node.module or "").startswith("torch_softmax")]


@pytest.mark.parametrize("module", modules_of("torch_softmax._launch"))
def test_layers_of_launchers_import_only_torch_and_triton(module):
    assert foreign_imports(module) <= {"torch", "triton"}


@pytest.mark.parametrize(
    "module",
    [
        module
        for module in MODULES
        if layer_of(module)
        not in (
            "torch_softmax._kernels",
            "torch_softmax._launch",
            "torch_softmax.fashion",
            "torch_softmax.report",
        )
    ],
)
def test_layers_above_the_launchers_import_only_torch(module):
    late = BENCHMARK_IMPORTS if layer_of(module) == "torch_softmax.benchmark" else set()
    assert foreign_imports(module) <= {"torch"} | late
    assert foreign_imports(module) - foreign_imports(module, of=late_imports) <= {"torch"}


@pytest.mark.parametrize("module", modules_of("torch_softmax.report"))
def test_layers_of_the_report_import_only_torch_and_matplotlib(module):
    assert foreign_imports(module) <= {"torch", "matplotlib"}


@pytest.mark.parametrize("module", modules_of("torch_softmax.fashion"))
def test_layers_of_the_example_know_torch_and_its_extra(module):
    assert foreign_imports(module) <= {"torch", "tqdm", "PIL", "torchvision"}
    at_once = foreign_imports(module) - foreign_imports(module, of=late_imports)
    assert at_once <= {"torch", "tqdm"}


def test_layers_work_without_triton():
    loss = run_python(
        "import sys; sys.modules['triton'] = None\n"
        "import torch, torch_softmax\n"
        "print(torch_softmax.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).item())"
    )
    assert float(loss) == pytest.approx(1.3862943)


def test_layers_import_nothing_heavy():
    # torch itself imports NumPy if it is installed
    brought = run_python(
        "import sys, torch; before = set(sys.modules)\n"
        "import torch_softmax, torch_softmax.report\n"
        "print(*set(sys.modules) - before)"
    )
    heavy = {"matplotlib", "numpy", "torchvision", "triton", "torch_softmax._kernels"}
    assert not heavy & set(brought.split())


def test_layers_export_exactly_what_is_public():
    public = {
        name
        for name, value in vars(torch_softmax).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public == set(torch_softmax.__all__)


def test_layers_ship_every_package_and_its_types():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert set(setuptools["packages"]) == packages
    assert setuptools["package-dir"] == {"torch_softmax._kernels": "triton_kernels"}
    assert setuptools["package-data"]["torch_softmax"] == ["py.typed"]
    for package, names in setuptools["package-data"].items():
        assert all((ROOT / package.replace(".", "/") / name).is_file() for name in names)
