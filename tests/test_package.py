"""The suite as a package: its requirements and contents, and that no folder gets in its way."""

import ast
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import lra
from lra import paths, stamp
from lra.machine import resolve_device

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    optional = PROJECT["optional-dependencies"]
    wanted = [*PROJECT["dependencies"], *(each for extra in extras for each in optional[extra])]
    return {canonical(Requirement(each).name) for each in wanted}


def pinned(lock: str) -> set[str]:
    lines = (ROOT / lock).read_text().splitlines()
    return {canonical(line.split("==")[0]) for line in lines if "==" in line and line[0] != "#"}


def imported(*folders: str) -> dict[str, set[str]]:
    """Return the distributions that files below folders import, each with those files."""
    owners = importlib.metadata.packages_distributions()
    found: dict[str, set[str]] = {}
    for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                for owner in owners.get(name, []):
                    found.setdefault(canonical(owner), set()).add(str(file.relative_to(ROOT)))
    found.pop(PROJECT["name"], None)
    return found


def needed(*names: str) -> set[str]:
    """Return distributions and everything that they require in turn, as installed here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        if (name := waiting.pop()) in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonical(requirement.name))
    return found


def test_the_suite_declares_everything_it_imports() -> None:
    found = imported("lra", "models")
    assert {"torch", "numba", "omegaconf", "pyarrow"} <= found.keys()
    undeclared = {name: files for name, files in found.items() if name not in declared()}
    # Packages of an extra are imported only in the code that the extra is for; Hydra's plugins
    # share one name, which any of them may own.
    assert undeclared.keys() <= declared("sweep", "slurm", "optuna") - declared()
    assert set().union(*undeclared.values()) <= {"lra/slurm.py"}
    measurements = imported("scripts")
    assert {n: files for n, files in measurements.items() if n not in declared("dev")} == {}


def test_packages_that_only_developers_need_are_not_installed_for_users() -> None:
    users = pinned("requirements.lock")
    assert declared("sweep") <= users
    assert not users & {"ruff", "mypy", "hypothesis", "ptwt", "pytest"}
    assert declared("dev") <= users | pinned("requirements-dev.lock")
    # All the rest is there because a declared package needs it.
    assert users <= needed(*declared("sweep"))
    assert not users & pinned("requirements-dev.lock")


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("name", ["models/__init__.py", "models.py"])
def test_a_folder_with_its_own_models_does_not_hide_those_of_the_suite(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    done = python("import lra.config, models; print(models.__file__)", tmp_path)
    assert done.stdout.strip() == str(ROOT / "models" / "__init__.py"), done.stderr
    done = python("import models, lra", tmp_path)
    assert (
        f"{tmp_path / name} has already been imported under that name: import lra first"
        in done.stderr
    )


def test_a_backend_in_a_folder_named_models_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.py").touch()
    code = "from lra import custom; custom.load('models.mine:Mine', 'attention.path')"
    done = python(code, tmp_path)
    assert "there is no module models.mine" in done.stderr
    assert "models is the suite's own package" in done.stderr


def test_a_clone_named_lra_is_not_hidden_by_the_folder_that_contains_it(tmp_path: Path) -> None:
    (tmp_path / "lra").symlink_to(ROOT)
    done = python("import lra.config; print(lra.__version__)", tmp_path)
    assert done.stdout.strip() == lra.__version__, done.stderr


def test_the_command_works_in_a_folder_with_its_own_lra(tmp_path: Path) -> None:
    (tmp_path / "here" / "lra").mkdir(parents=True)
    (tmp_path / "here" / "lra" / "__init__.py").write_text("raise SystemExit('not ours')")
    # The script that pip generates from the entry in pyproject.toml.
    module, _, function = PROJECT["scripts"]["lra"].partition(":")
    script = tmp_path / "lra.script"
    script.write_text(f"from {module} import {function}\n{function}()\n")
    command = [sys.executable, str(script), "show", "task=listops", "scale=mini"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True
    )
    assert done.stdout.startswith("listops/softmax seed0"), done.stderr


def test_importing_lra_imports_neither_torch_nor_hydra(tmp_path: Path) -> None:
    code = "import lra, sys; print(lra.__version__, *{'torch', 'hydra', 'pandas'} & {*sys.modules})"
    assert python(code, tmp_path).stdout.strip() == lra.__version__


def test_default_folders_do_not_follow_the_current_one_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LRA_CACHE_DIR", raising=False)
    monkeypatch.delenv("LRA_RUNS_DIR", raising=False)
    monkeypatch.chdir(ROOT)
    assert (paths.cache_dir(), paths.runs_dir()) == ("data/cache", "results/runs")
    monkeypatch.chdir(tmp_path)
    assert paths.cache_dir() == str(ROOT / "data/cache")
    assert paths.runs_dir() == str(ROOT / "results/runs")
    monkeypatch.setenv("LRA_CACHE_DIR", "here/cache")
    monkeypatch.setenv("LRA_RUNS_DIR", "here/runs")
    config = lra.compose.load("task=listops", "scale=mini")
    assert (config.cache_dir, config.runs_dir) == ("here/cache", "here/runs")
    config = lra.compose.load("task=listops", "scale=mini", "runs_dir=elsewhere")
    assert config.runs_dir == "elsewhere"
    monkeypatch.setenv("LRA_RUNS_DIR", "~/runs")
    assert Path(lra.compose.load("scale=mini").runs_dir) == Path.home() / "runs"


def copy_of_sources(folder: Path) -> Path:
    """Copy the files that git tracks or would track, as a clone has them."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in (name for name in listed if (ROOT / name).is_file()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", *words, "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*command, "--no-build-isolation"], check=True, capture_output=True, text=True)


@pytest.mark.slow
def test_a_wheel_trains_a_cell_from_any_folder_and_its_build_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    sources, target = copy_of_sources(tmp_path / "sources"), tmp_path / "target"
    before = sorted(sources.rglob("*"))
    pip("install", "--target", str(target), str(sources))
    assert sorted(sources.rglob("*")) == before
    here = tmp_path / "a project"
    (here / "models").mkdir(parents=True)
    (here / "models" / "__init__.py").touch()
    home = {"PYTHONPATH": str(target), "HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    for variable in ("LRA_CACHE_DIR", "LRA_RUNS_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        home[variable] = ""
    words = ["task=listops", "attention=fourier", "scale=mini", "train.steps=4", "threads=1"]
    words += ["train.warmup_steps=2", "train.validate_every=2", "task.options.num_train=64"]
    words += ["task.options.num_validation=16", "task.options.num_test=16", "variant=small"]
    train = [sys.executable, "-m", "lra", "train", *words]
    environment = os.environ | home
    subprocess.run(train, cwd=here, env=environment, check=True, capture_output=True)
    folder = "listops/fourier/small/seed0"
    data = tmp_path / "home" / ".local" / "share" / "lra"
    assert (data / "runs" / "mini" / "nystromformer" / folder / "result.json").is_file()
    assert any((tmp_path / "home" / ".cache" / "lra").glob("listops-*/manifest.json"))
    report = [sys.executable, "-m", "lra", "report", "scale=mini"]
    done = subprocess.run(report, cwd=here, env=environment, capture_output=True, text=True)
    assert "fourier (small)" in done.stdout, done.stderr
    assert (data / "mini" / "nystromformer").is_dir()
    assert os.listdir(here) == ["models"]


def test_the_commit_that_a_package_was_built_from_is_true_or_left_out(tmp_path: Path) -> None:
    sources = copy_of_sources(tmp_path / "sources")

    def git(*words: str) -> str:
        author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        command = ["git", *author, *words]
        return subprocess.run(
            command, cwd=sources, check=True, capture_output=True, text=True
        ).stdout.strip()

    def built() -> Path:
        """Return a package's own files, as setup.py leaves them."""
        target = tmp_path / f"target{len(list(tmp_path.iterdir()))}"
        shutil.copytree(sources / "lra", target / "lra")
        shutil.copytree(sources / "models", target / "models")
        shutil.copytree(sources / "configs", target / "lra" / "files" / "configs")
        stamp.write_stamp(target / "lra" / "files", sources)
        return target

    unknown = built()
    assert stamp.version(unknown / "lra" / "files", unknown) == ("", False)
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    head = git("rev-parse", "HEAD")
    clean = built()
    assert stamp.version(clean / "lra" / "files", clean) == (head, False)
    (clean / "models" / "softmax.py").write_text("# another\n")
    assert stamp.version(clean / "lra" / "files", clean) == (head, True)
    (sources / "lra" / "loop.py").write_text("# another\n")
    changed = built()
    assert stamp.version(changed / "lra" / "files", changed) == (head, True)


@pytest.mark.slow
def test_a_source_distribution_builds_the_same_wheel(tmp_path: Path) -> None:
    sources = copy_of_sources(tmp_path / "sources")
    for words in (["init"], ["add", "."], ["commit", "-m", "all"]):
        author = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *author, *words], cwd=sources, check=True, capture_output=True)
    before = sorted(sources.rglob("*"))
    code = f"import setuptools.build_meta as b; print(b.build_sdist({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=sources, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(sources.rglob("*")) == before
    with tarfile.open(tmp_path / done.stdout.splitlines()[-1]) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"long_range_arena_suite-{lra.__version__}"
    assert (unpacked / "tests" / "test_package.py").is_file()
    pip("install", "--target", str(tmp_path / "one"), str(sources))
    pip("install", "--target", str(tmp_path / "other"), str(unpacked))

    def files(name: str) -> list[str]:
        folder = tmp_path / name
        return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())

    assert files("one") == files("other")
    assert "lra/files/configs/train.yaml" in files("one")
    kept = {f"lra/files/results/{name}.csv" for name in ("published", "known_data")}
    assert kept <= {*files("one")}
    assert {"lra/report/web/page.html", "lra/report/web/sortable.js"} <= {*files("one")}
    # The same holds for the commit, which came along in the source distribution.
    name = "lra/files/built_from.json"
    assert (tmp_path / "one" / name).read_text() == (tmp_path / "other" / name).read_text()


@pytest.mark.slow
def test_systems_without_linux_only_features_are_supported(tmp_path: Path) -> None:
    code = """
        import importlib, os, pkgutil, signal, sys
        import psutil, torch, torch.utils.tensorboard, hydra, numba, datasets
        sys.modules |= {"resource": None, "fcntl": None, "pwd": None}
        del signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, os.sysconf, os.fork
        import lra
        for module in pkgutil.walk_packages(lra.__path__, "lra."):
            # Slurm is Linux's, and an extra.
            if not module.name.endswith(("__main__", ".slurm")):
                importlib.import_module(module.name)
        from lra import memory, signals
        assert memory.total(torch.device("cpu")) > 2**20
        assert [each.name for each in signals.SIGNALS] == ["SIGTERM", "SIGINT"]
        with signals.listening() as stop:
            assert not stop.requested
    """
    done = python(textwrap.dedent(code), tmp_path)
    assert done.returncode == 0, done.stderr


def test_a_missing_apple_gpu_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    config = lra.compose.load("device=mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(lra.config.ConfigError, match="device=mps: torch sees no Apple GPU"):
        resolve_device(config.device)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device(config.device) == torch.device("mps")
