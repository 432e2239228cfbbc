"""Which part may import which, read from the sources; and conventions that no linter checks."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from lra.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


def imports(folder: str) -> dict[str, set[str]]:
    """Return the modules that each file below a folder imports anywhere, by relative path."""
    found = {}
    for file in (ROOT / folder).rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative import"
                names |= {str(node.module), *(f"{node.module}.{a.name}" for a in node.names)}
        found[str(file.relative_to(ROOT))] = names
    return found


def under(names: set[str], *packages: str) -> set[str]:
    return {n for n in names if any(n == p or n.startswith(f"{p}.") for p in packages)}


def test_models_never_import_the_benchmark() -> None:
    for file, names in imports("models").items():
        assert not under(names, "lra"), file
        outside = {n.split(".")[0] for n in names} - set(sys.stdlib_module_names)
        compiler = {"numba", "llvmlite"} if file == "models/compiled.py" else set()
        assert outside <= {"torch", "pywt", "numpy", "models"} | compiler, file


def test_importing_the_backends_does_not_load_numba() -> None:
    code = "import sys, models; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_tasks_never_import_models_or_torch() -> None:
    for file, names in imports("lra/tasks").items():
        assert not under(names, "models", "torch"), file


def test_no_backend_imports_the_registry_or_another_backend() -> None:
    import models

    backends = {backend.__module__ for backend in models.ATTENTION.values()}
    for file, names in imports("models").items():
        if Path(file).stem not in ("__init__", "registry"):
            assert "models" not in names and "models.ATTENTION" not in names, file
            assert not under(names, *backends), file


def test_only_build_imports_both_tasks_and_models() -> None:
    both = {
        file
        for file, names in imports("lra").items()
        if under(names, "lra.tasks") and under(names, "models")
    }
    assert both == {"lra/build.py"}


def test_no_module_imports_that_of_a_command() -> None:
    entries = [command.module for command in COMMANDS.values()]
    for folder in ("lra", "models", "scripts"):
        for file, names in imports(folder).items():
            assert not under(names, *entries), file


def test_the_import_graph_has_at_most_seven_layers() -> None:
    """A folder counts as one module: how it is organised inside is its own affair."""
    needs: dict[str, set[str]] = {}
    for file, names in imports("lra").items():
        module = Path(file).with_suffix("").parts[1]
        modules = {name.split(".")[1] for name in names if name.startswith("lra.")}
        needs.setdefault(module, set()).update(modules)
    layers: dict[str, int] = {}
    while len(layers) < len(needs):
        free = [
            module
            for module, below in needs.items()
            if module not in layers and below & needs.keys() - {module} <= layers.keys()
        ]
        assert free, f"a circle among {sorted(needs.keys() - layers.keys())}"
        for module in free:
            below = needs[module] & needs.keys() - {module}
            layers[module] = 1 + max((layers[each] for each in below), default=0)
    assert max(layers.values()) <= 7, layers


def test_the_contract_imports_no_backend_task_or_configuration() -> None:
    for file in ("lra/contract.py", "lra/memory.py"):
        names = imports("lra")[file]
        assert not under(names, "lra.tasks", "lra.config", "lra.build"), file
        known = {"models.heads", "models.encoder", "models.randomness"}
        assert {".".join(n.split(".")[:2]) for n in under(names, "models")} <= known, file


def test_a_report_needs_no_torch() -> None:
    code = "import sys, lra.report.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda p: p.stem)
def test_every_script_can_be_imported_and_documents_its_command(script: Path) -> None:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    assert module.__doc__ and f"python scripts/{script.name}" in module.__doc__
    assert callable(module.main)


def test_a_configuration_needs_no_torch() -> None:
    code = "import sys, lra.compose; lra.compose.load(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
