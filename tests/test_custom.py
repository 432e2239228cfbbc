"""A user's own backends, given by path: what is refused and why, and commands that take them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_cell import TINY, TINY_RECALL

import lra.check
import lra.compose
import lra.config
from lra import custom, provenance, reach
from lra.bench import measurement
from lra.bench.lengths import BenchConfig, cell_config, measure
from lra.build import build_attention, build_model
from lra.cell import load_run
from lra.config import AttentionConfig, Config, ConfigError, backend_name
from lra.contract import memory_growth, plain_form, sentence
from lra.plan.cells import assess
from lra.record import RECORD, read_record
from lra.report.pages import write_report
from lra.runner import run_cell
from models import ATTENTION

ROOT = Path(__file__).resolve().parents[1]
QUICK = [*TINY, "train.steps=8", "train.warmup_steps=2", "train.validate_every=4"]
MINE = """
from collections.abc import Callable

from torch import nn

from models.softmax import Softmax


class Scaled(Softmax):
    def __init__(self, shape, *, scale: float = 1.0, untyped=None):
        super().__init__(shape)
        self.scale = scale

    def forward(self, x, mask=None):
        return self.scale * super().forward(x, mask)


class Other(Scaled):
    pass


class Around(nn.Module):
    pad_invariant = True

    def __init__(self, shape, *, inner: Callable[..., nn.Module]):
        super().__init__()
        self.inside = inner(shape)

    def forward(self, x, mask=None):
        return self.inside(x, mask)


class Pooled(Scaled):
    def forward(self, x, mask=None):
        return super().forward(x, mask).mean(1, keepdim=True)


class Mute(nn.Module):
    def __init__(self, shape):
        super().__init__()


class Shapeless(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()


class Inherits(nn.Module):
    pass


class Positional(nn.Module):
    def __init__(self, shape, window=3):
        super().__init__()


class Unreadable(nn.Module):
    def __init__(self, shape: "AttentionShape"):
        super().__init__()


def function(x, mask):
    return x
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a user's package outside the repository; return the file of its module."""
    package = tmp_path / "lra_user_pkg"
    package.mkdir()
    (package / "mine.py").write_text(MINE)
    (package / "broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("lra_user_pkg")]:
        monkeypatch.delitem(sys.modules, name)
    return package / "mine.py"


def configure(folder: Path, name: str, *overrides: str) -> Config:
    path = f"attention.path=lra_user_pkg.mine:{name}"
    return lra.compose.load(
        *QUICK, f"cache_dir={folder / 'cache'}", "attention=custom", path, *overrides
    )


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "attention.path: needs a value, module:Class, such as my_pkg.my_file:MyAttention"),
        ("mine.py", "attention.path=mine.py: must be module:Class, such as"),
        ("mine.py:Scaled", "there is no module mine.*did you mean mine:Scaled"),
        ("lra_user_pkg/mine.py:Scaled", "must be module:Class, such as"),
        ("lra_user_pkg.mein:Scaled", "there is no module lra_user_pkg.mein; looked in /"),
        ("lra_user_pkgs.mine:Scaled", "there is no module lra_user_pkgs; looked in /"),
        (
            "lra_user_pkg.mine:Skaled",
            "mine.py has no class Skaled; its nn.Module classes are: Scaled, Other, Around, Pool",
        ),
        ("lra_user_pkg.mine:function", "function must be a subclass of torch.nn.Module"),
        ("lra_user_pkg.mine:Shapeless", r"__init__ must take shape first, as in def __init__\(sel"),
        ("lra_user_pkg.mine:Inherits", "__init__ must take shape first"),
        ("lra_user_pkg.mine:Positional", "__init__ takes window=3, but options must be keyword-on"),
        ("lra_user_pkg.mine:Unreadable", "the types of __init__ cannot be read: name 'AttentionS"),
    ],
)
def test_a_path_that_is_not_a_backend_is_refused_with_an_explanation(
    mine: Path, path: str | None, message: str
) -> None:
    config = AttentionConfig(name=backend_name(path), path=path)
    with pytest.raises(ConfigError, match=message):
        build_attention(config)


def test_a_file_that_python_cannot_read_is_reported_in_one_line(mine: Path) -> None:
    mine.write_text("class Mine(:\n")
    with pytest.raises(ConfigError, match=r"Python cannot read .*mine.py, line 1: ") as refused:
        custom.load("lra_user_pkg.mine:Mine", "attention.path")
    assert "\n" not in str(refused.value)


def test_an_error_inside_the_users_module_is_reported_in_one_line(mine: Path) -> None:
    with pytest.raises(ConfigError, match=r"'no_such_library' \(broken.py:\d+\)$"):
        custom.load("lra_user_pkg.broken:Mine", "attention.path")
    mine.write_text("\nraise RuntimeError('no\\nGPU')\n")
    with pytest.raises(ConfigError, match=r"importing it raises RuntimeError: no \(mine"):
        custom.load("lra_user_pkg.mine:Mine", "attention.path")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "attention.options.scael=2",
            r"attention.options.scael: no such option; the options are: scale \(float\), untyped",
        ),
        ("attention.options.scale=much", "attention.options.scale='much': must be float"),
        (
            "attention.name=short",
            "attention.name=short: for attention.path=lra_user_pkg.mine:Sc",
        ),
    ],
)
def test_a_wrong_option_or_name_is_named_with_the_choices(
    mine: Path, tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_attention(configure(tmp_path, "Scaled", override).attention)


def test_a_backend_that_does_not_declare_what_padding_does_is_refused(
    mine: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ConfigError, match="attention lra_user_pkg.mine.Mute: Mute must declare pad"
    ):
        build_model(configure(tmp_path, "Mute"))


def test_a_path_is_refused_for_a_built_in_backend() -> None:
    config = lra.compose.load("attention=softmax", "attention.path=a:B")
    with pytest.raises(ConfigError, match="path=a:B: softmax is built in .* attention=custom"):
        build_attention(config.attention)


def test_custom_backends_nest_inside_built_in_ones_and_around_them(
    mine: Path, tmp_path: Path
) -> None:
    inside = lra.compose.load(
        "attention=wavspa",
        "attention@attention.inner=custom",
        "attention.inner.path=lra_user_pkg.mine:Scaled",
        "attention.inner.options.scale=3",
    )
    bands = build_model(inside).encoder.blocks[0].attention.bands
    assert [band.scale for band in bands] == [3, 3]
    wrong = lra.compose.load(
        "attention=wavspa",
        "attention@attention.inner=custom",
        "attention.inner.path=lra_user_pkg.mine:Scaled",
        "attention.inner.options.skale=3",
    )
    with pytest.raises(ConfigError, match="attention.inner.options.skale: no such option"):
        build_attention(wrong.attention)
    with pytest.raises(ConfigError, match=r"needs a backend: \+attention@attention.inner=softmax"):
        build_attention(configure(tmp_path, "Around").attention)
    around = configure(tmp_path, "Around", "+attention@attention.inner=fourier")
    inner = build_model(around).encoder.blocks[0].attention.inside
    assert isinstance(inner, ATTENTION["fourier"])


def test_options_of_an_inner_backend_that_its_file_leaves_out_are_accepted_and_others_refused() -> (
    None
):
    words = ["attention=ema", "attention@attention.inner=linformer"]
    found = lra.compose.load(*words, "attention.inner.options.share_layers=true")
    assert found.attention.inner.options["share_layers"] is True
    with pytest.raises(ConfigError, match=r"attention\.inner: there is no inner backend"):
        lra.compose.load("attention=softmax", "attention.inner.options.rank=17")
    wrong = lra.compose.load(*words, "attention.inner.options.share_layer=true")
    with pytest.raises(ConfigError, match="inner.options.share_layer: no such option; the options"):
        build_attention(wrong.attention)


def test_different_paths_give_different_names_and_none_of_a_built_in_backend() -> None:
    paths = ["a.b:C", "a:C", "a.b.c:C", "b:C", "a.b:D"]
    names = {backend_name(path) for path in paths}
    assert names == {"a.b.C", "a.C", "a.b.c.C", "b.C", "a.b.D"}
    assert not names & set(ATTENTION)
    # A nested class would give two paths the same name.
    assert backend_name("a:b.C") == backend_name("a/b:C") == backend_name(None) == "custom"


def test_a_record_names_the_file_behind_it_and_report_and_eval_read_it(
    mine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "runs/mini/nystromformer/listops/lra_user_pkg.mine.Scaled/default/seed0"
    folder.mkdir(parents=True)
    record = run_cell(configure(tmp_path, "Scaled"), folder)
    assert record is not None and record.attention == "lra_user_pkg.mine.Scaled"
    source = record.attention_source
    assert re.fullmatch(r"lra_user_pkg.mine:Scaled, sha256 [0-9a-f]{16}", source)
    assert record.config["attention"]["path"] == "lra_user_pkg.mine:Scaled"
    page = write_report(tmp_path / "runs", tmp_path / "out", "mini", "nystromformer")
    # A cell as small as this departs from its recipe.
    assert "| lra_user_pkg.mine.Scaled [*] |" in page
    assert f"* Backend lra_user_pkg.mine.Scaled: {source}." in page
    named = write_report(
        tmp_path / "runs", tmp_path / "out", "mini", "nystromformer", attentions=["custom"]
    )
    assert named == page
    config, _, model = load_run(folder)
    assert config.attention.path == "lra_user_pkg.mine:Scaled"
    assert model.encoder.blocks[0].attention.scale == 1.0
    # Another class is another configuration, whichever folder it is given.
    with pytest.raises(ConfigError, match="attention.path: lra_user_pkg.mine:Scaled there"):
        run_cell(configure(tmp_path, "Other"), folder)
    mine.write_text(MINE + "\n# Changed.\n")
    # As another process would find it: this one has already loaded what was there.
    provenance._of_module.cache_clear()
    with caplog.at_level("INFO"):
        assert run_cell(configure(tmp_path, "Scaled"), folder) is None
    assert "is finished, but its attention has changed since; force=true" in caplog.text


def test_an_unfinished_run_is_refused_once_its_file_is_edited_and_the_plan_says_so(
    mine: Path, tmp_path: Path
) -> None:
    words = ["task=listops", "attention=custom", "seed=0", *QUICK]
    words += [f"{key}_dir={tmp_path / key}" for key in ("cache", "runs")]
    words += ["attention.path=lra_user_pkg.mine:Scaled", "train.checkpoint_seconds=0"]
    config, folder = lra.compose.place(*words)
    folder.mkdir(parents=True)
    run_cell(config, folder)
    # A checkpoint without a record is what a killed run leaves.
    (folder / RECORD).unlink()
    assert assess(words).state == "continues"
    mine.write_text(MINE.replace("self.scale * super()", "2 * self.scale * super()"))
    provenance._of_module.cache_clear()
    assert assess(words).state == "conflict"
    with pytest.raises(ConfigError, match="belongs to another .* or an attention that has changed"):
        run_cell(config, folder)
    mine.write_text(MINE)
    provenance._of_module.cache_clear()
    assert run_cell(config, folder) is not None


def test_eval_names_the_parameters_that_do_not_fit_the_code(mine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    run_cell(configure(tmp_path, "Scaled"), folder)
    file = folder / "best.pt"
    state = torch.load(file, weights_only=True)
    del state["model"]["encoder.blocks.0.attention.projections.out.bias"], state["checksum"]
    torch.save(state, file)
    with pytest.raises(
        ConfigError, match="best.pt belongs to another model: .*projections.out.bias"
    ):
        load_run(folder)


def test_a_backend_with_the_wrong_output_shape_ends_its_cell_with_one_line(
    mine: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    message = r"attention lra_user_pkg.mine.Pooled: Pooled returns a tensor \(\d+, 1, \d+\), not"
    with pytest.raises(ConfigError, match=message):
        run_cell(configure(tmp_path, "Pooled"), folder)
    assert not (folder / RECORD).exists()


def test_recall_and_reach_accept_a_users_own_backend(
    mine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caches = str(tmp_path / "cache")
    path = "attention.path=lra_user_pkg.mine:Scaled"
    words = [*TINY_RECALL, "attention=custom", path, f"cache_dir={caches}"]
    folder = tmp_path / "runs/mini/nystromformer/recall/lra_user_pkg.mine.Scaled/default/seed0"
    folder.mkdir(parents=True)
    record = run_cell(lra.compose.load(*words), folder)
    assert record is not None and record.group == "distance, in tokens"
    assert sum(each["total"] for each in record.test_by_group) == 40
    page = write_report(tmp_path / "runs", tmp_path / "out", "mini", "nystromformer")
    assert "## recall: accuracy by distance, in tokens, in percent" in page
    words = [str(folder), "--examples", "2", "--positions", "4", "--cache-dir", caches]
    monkeypatch.setattr("sys.argv", ["reach", *words])
    reach.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    name = "| recall/lra_user_pkg.mine.Scaled seed0"
    chosen = f"{name}, update {record.best_step}"
    assert [row[0].strip() for row in rows[2:]] == [chosen, f"{name} at initialisation"]
    assert all(0 < float(row[1]) < 64 for row in rows[2:])


def test_bench_accepts_paths_as_well_as_names(mine: Path) -> None:
    attentions = ["softmax", "lra_user_pkg.mine:Scaled"]
    with lra.compose.initialize_config_dir(str(lra.compose.CONFIGS), version_base="1.3"):
        rows = measure(BenchConfig(attentions, [32], batch_size=1, repeats=1, device="cpu"))
        with pytest.raises(ConfigError, match="has no class Skaled"):
            measure(BenchConfig(["lra_user_pkg.mine:Skaled"], [32], device="cpu"))
    assert [row.attention for row in rows[::2]] == ["softmax", "lra_user_pkg.mine.Scaled"]
    assert rows[0].parameters == rows[2].parameters


def test_bench_accepts_options_and_distinguishes_variants(mine: Path) -> None:
    own = "lra_user_pkg.mine:Scaled scale=3"
    attentions = ["linformer", "linformer rank=2 shared=false", own]
    bench = BenchConfig(attentions, [32], batch_size=1, repeats=1, device="cpu")
    with lra.compose.initialize_config_dir(str(lra.compose.CONFIGS), version_base="1.3"):
        rows = measure(bench)
        assert cell_config(bench, own, 32).attention.options == {"scale": 3}
        for wrong, message in {
            "softmax fast=1": "attention.options.fast: no such option; the options are: fused",
            "lra_user_pkg.mine:Scaled scale": "scale: options are written key=value",
        }.items():
            with pytest.raises(ConfigError, match=message):
                measure(BenchConfig([wrong], [32], device="cpu"))
    names = ["linformer", "linformer rank=2 shared=false", "lra_user_pkg.mine.Scaled scale=3"]
    assert [row.attention for row in rows[::2]] == names
    assert rows[0].parameters != rows[2].parameters


def command(folder: Path, *words: str) -> str:
    """Run `python -m` in a user's folder; return what it prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"LRA_RUNS_DIR": "results/runs", "LRA_CACHE_DIR": "data/cache"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def guide_folder(tmp_path: Path) -> Path:
    """Return a folder that holds the example of docs/attention.md."""
    guide = (ROOT / "docs" / "attention.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "my_attention.py").write_text(code)
    return tmp_path


def test_the_example_in_contributing_passes_the_checks_of_all_it_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    [code] = [c for c in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "Nearby" in c]
    (tmp_path / "nearby.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        lra.check.main(["nearby:Nearby", "--fast", "window=3"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0, printed
    for check in (plain_form, memory_growth):
        assert f"pass  {sentence(check)}\n" in printed


def test_the_example_in_the_guide_is_trained_by_a_sweep_in_the_users_folder(
    guide_folder: Path,
) -> None:
    overrides = [*QUICK, "attention=custom", "attention.path=my_attention:Mean", "seed=0,1"]
    command(guide_folder, "lra.train", "-m", *overrides)
    runs = guide_folder / "results/runs/mini/nystromformer/listops/my_attention.Mean/default"
    records = [read_record(runs / f"seed{seed}" / RECORD) for seed in (0, 1)]
    assert [record.status for record in records] == ["ok", "ok"]


@pytest.mark.slow
def test_processes_of_a_parallel_sweep_find_the_users_folder_too(guide_folder: Path) -> None:
    pytest.importorskip("joblib")
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    overrides = [*QUICK, "attention=custom", "attention.path=my_attention:Mean", "seed=0,1"]
    command(guide_folder, "lra.train", "-m", *launcher, *overrides)
    folder = guide_folder / "results/runs/mini"
    assert len([f for f in folder.rglob("result.json") if json.loads(f.read_text())]) == 2


@pytest.mark.slow
def test_the_example_in_the_guide_trains_under_torch_compile(guide_folder: Path) -> None:
    overrides = [*QUICK, "attention=custom", "attention.path=my_attention:Mean"]
    command(guide_folder, "lra.train", *overrides, "train.compile=true")


@pytest.mark.slow
def test_bench_measures_every_built_in_backend_by_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = yaml.safe_load((lra.compose.CONFIGS / "bench.yaml").read_text())
    assert values["attentions"] is None and values["lengths"] == [1024, 2048, 3072, 4096]
    monkeypatch.setattr(measurement, "MIN_SECONDS", 0)
    with lra.compose.initialize_config_dir(str(lra.compose.CONFIGS), version_base="1.3"):
        rows = measure(BenchConfig(None, [32], batch_size=1, repeats=1, device="cpu"))
    for mode, found in zip(("training", "inference"), (rows[::2], rows[1::2]), strict=True):
        assert [row.attention for row in found] == list(ATTENTION)
        assert {row.mode for row in found} == {mode}
        # All of them have operations, memory and parameters.
        assert min(min(row.flops, row.peak_memory_bytes, row.parameters) for row in found) > 0
    for update, answer in zip(rows[::2], rows[1::2], strict=True):
        assert update.flops > 2 * answer.flops
