"""The one grammar: what words mean, and the messages for those that mean nothing."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from lra import bar, status
from lra.compose import command, groups, load, place
from lra.config import ConfigError
from lra.report.selection import selections
from lra.words import Groups, complete, expand, grouped, merged

NONE = Groups(())


def cells(*words: str) -> list[list[str]]:
    ready = command(words)
    return list(expand(ready, groups(ready)))


@pytest.mark.parametrize("seeds", ["0,1", "0, 1", "range(0,2)", "range(2)", "choice(0,1)"])
def test_values_may_be_written_in_every_way_that_hydra_allows(seeds: str) -> None:
    assert cells("task=text", f"seed={seeds}") == [["task=text", f"seed={n}"] for n in (0, 1)]


def test_a_glob_chooses_among_the_files_of_a_group_but_never_a_template() -> None:
    assert cells("attention=glob(lin*)") == [["attention=linear"], ["attention=linformer"]]
    names = {word.partition("=")[2] for [word] in cells("attention=glob(*)")}
    assert {"softmax", "mra", "wavspa"} < names and "custom" not in names
    with pytest.raises(ConfigError, match=r"attention=glob\(zz\*\): matches none of bigbird"):
        command(["attention=glob(zz*)"])


@pytest.mark.parametrize(
    "folder",
    ["/raw/a b", "/raw/a,b", "/raw/a=b", "/raw/(a)", "/raw/$a", "/raw/${a", "/raw/ü 語", "/it's\\"],
)
def test_a_folder_is_taken_literally(folder: str) -> None:
    config, run = place(f"data_dir={folder}", f"runs_dir={folder}")
    assert config.data_dir == config.runs_dir == folder and str(run).startswith(folder)
    once = command([f"data_dir={folder}"])
    assert command(once) == once and len(cells(f"data_dir={folder}")) == 1


@pytest.mark.parametrize("key", ["data_dir", "cache_dir", "runs_dir"])
def test_a_tilde_is_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home of/me")
    config, run = place(f"{key}=~/x")
    assert getattr(config, key) == "/home of/me/x"
    assert key != "runs_dir" or str(run).startswith("/home of/me/x/")
    assert getattr(load(f"{key}=~/x/${{scale}}", "scale=mini"), key) == "/home of/me/x/mini"


def test_an_option_is_not_removed_since_its_default_may_not_be_the_recipes() -> None:
    for word in ("~attention.options.window", "~task.options.min_length"):
        with pytest.raises(ConfigError, match="options cannot be removed; set"):
            load("attention=longformer", word)


def test_a_folder_may_be_derived_from_other_values() -> None:
    assert load("runs_dir=/a b/${scale}", "scale=mini").runs_dir == "/a b/mini"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("+train.lr=1e-1", "there is no key train.lr; use train.learning_rate"),
        ("++train.lr=5", "there is no key train.lr; use train.learning_rate"),
        ("+foo=1", "there is no key foo"),
        ("train.learning_rat=1", "did you mean train.learning_rate"),
        ("learning_rate=1", "did you mean train.learning_rate or pretrain.learning_rate?"),
        ("lr=1", "use train.learning_rate"),
        ("batch_size=1", "use train.batch_size"),
        ("optimizer.lr=1", "use train.learning_rate"),
        ("optimizer=adam", "AdamW is the only one"),
        ("model=vit", "the backend is chosen by attention="),
        ("epochs=3", "train.steps counts updates"),
        ("trainer.max_epochs=3", "train.steps counts updates"),
        ("trainer=gpu", "use train.steps"),
        ("logger=wandb", "TensorBoard events are always written"),
        ("attention.window=3", "did you mean attention.options.window?"),
        ("task=listop", "did you mean listops?"),
        ("task=text,listop", "did you mean listops?"),
        ("attention=my-file:Mine", "must be module:Class"),
        ("softmax", "a word is written key=value, such as attention=softmax"),
        ("experiment=nothing", "experiment=nothing: "),
    ],
)
def test_a_meaningless_word_is_reported_in_one_line(word: str, expected: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(word)
    message = str(refused.value)
    assert expected in message and "\n" not in message and "append" not in message
    assert message.startswith(word.partition("=")[0])


def test_a_known_key_may_be_written_with_a_plus() -> None:
    assert load("++train.learning_rate=0.5").train.learning_rate == 0.5
    config = load("attention=linear", "+attention@attention.inner=mra")
    assert config.attention.inner is not None and config.attention.inner.name == "mra"


def test_a_custom_backend_is_written_in_place_of_a_name() -> None:
    assert cells("attention=softmax,my_file:Mine") == [
        ["attention=softmax"],
        [r"attention=my_file\:Mine"],
    ]
    for cell in (["attention=my_file:Mine"], cells("attention=my_file:Mine")[0]):
        config, folder = place(*cell, "attention.options.width=3")
        other = place(
            "attention=custom", "attention.path=my_file:Mine", "attention.options.width=3"
        )
        assert (config, folder) == other and config.attention.options == {"width": 3}
    config = load("attention=wavspa", "attention@attention.inner=my_file:Mine")
    assert config.attention.inner is not None
    assert (config.attention.inner.name, config.attention.inner.path) == (
        "my_file.Mine",
        "my_file:Mine",
    )


def test_a_users_folder_of_configurations_is_searched_before_that_of_the_suite(
    tmp_path: Path,
) -> None:
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "deep.yaml").write_text(
        "defaults: [wavspa, _self_]\noptions: {level: 3}\n"
    )
    words = [f"hydra.searchpath=['file://{tmp_path}']", "attention=glob(dee*)"]
    [cell] = cells(*words)
    config = load(*cell)
    assert config.attention.name == "wavspa" and config.attention.options["level"] == 3


def test_words_of_cells_are_merged_into_few_commands() -> None:
    grid = cells("task=text,image", "attention=softmax,mra", "seed=0,1")
    assert merged(grid) == [["task=text,image", "attention=softmax,mra", "seed=0,1"]]
    some = [cell for cell in grid if cell[:2] != ["task=image", "attention=mra"]]
    again = [cell for words in merged(some) for cell in cells(*words)]
    assert sorted(again) == sorted(some) and len(merged(some)) == 2
    assert grouped([["a=[1,2]"], ["a=[3]"]]) == [{"a": ("[1,2]", "[3]")}]


def test_complete_words_stay_unchanged() -> None:
    words = ["task=text", "data_dir=/a b", "variant=a|b", "seed=range(0,2)", "debug=true"]
    once = complete(words, NONE)
    assert complete(once, NONE) == once


def test_a_report_is_requested_in_the_same_words() -> None:
    words = ["task=text,image", "attention=softmax,my_file:Mine", "seed=range(0,2)", "device=auto"]
    words += ["scale=mini,paper", "train.steps=3", "data_dir=/raw", "hydra/launcher=basic"]
    mini, paper = selections(command(words), groups(words))
    assert (mini.scale, paper.scale, mini.protocol) == ("mini", "paper", "nystromformer")
    assert mini.tasks == ["text", "image"] and mini.seeds == [0, 1]
    assert mini.attentions == ["softmax", "my_file.Mine"]
    assert mini.values == {"train.steps": [3]}


@pytest.mark.parametrize("seed", ["0-2", "x", "1.5", "true", "0,x"])
def test_report_and_status_refuse_a_seed_that_is_not_a_whole_number(seed: str) -> None:
    with pytest.raises(ConfigError, match=r"seed=.*: must be whole numbers, as in 0,1 or range"):
        list(selections([f"seed={seed}"], groups()))
    with pytest.raises(ConfigError, match=r"seed=.*: must be whole numbers, as in 0,1 or range"):
        list(status.grid([f"seed={seed}"]))


# A report of no runs, written into the current folder.
REPORT = ["report", "scale=mini", "task=text", "runs_dir=none", "--out-dir", "results"]


def lra(folder: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "lra", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
    )


def test_lra_alone_lists_every_command_without_torch_or_hydra(tmp_path: Path) -> None:
    listed = lra(tmp_path)
    assert listed.returncode == 0 and not listed.stderr
    lines = [line.split() for line in listed.stdout.splitlines() if line.startswith("  ")]
    names = {words[0] for words in lines}
    wanted = "train eval plan report bench check show data preflight reproduce"
    assert set(wanted.split()) <= names
    code = "import sys; from lra.__main__ import main; main()"
    code += "; sys.exit(bool({'torch', 'hydra'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("name", ["train", "plan", "report", "check", "data", "reproduce"])
def test_the_help_of_a_command_needs_no_torch(name: str) -> None:
    code = (
        f"import sys; sys.argv = ['lra', '{name}', '--help']\n"
        "from lra.__main__ import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "lra" in shown.stdout


def test_an_unknown_command_is_reported_with_the_nearest_one(tmp_path: Path) -> None:
    ended = lra(tmp_path, "trian")
    assert ended.returncode == 2 and "did you mean lra train?" in ended.stderr


def test_a_report_ends_quietly_if_its_reader_leaves_and_spells_out_what_ascii_lacks(
    tmp_path: Path,
) -> None:
    printed = lra(tmp_path, *REPORT, PYTHONIOENCODING="ascii")
    assert printed.returncode == 0 and "mean over seeds +/- standard deviation" in printed.stdout
    pipe = f"{sys.executable} -m lra {' '.join(REPORT)} | head -1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", pipe],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert not ended.stderr and ended.stdout.splitlines()[-1] == "0"


def test_a_file_in_place_of_a_folder_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    ended = lra(tmp_path, *REPORT)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert ended.stderr.count("\n") == 1 and "results" in ended.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["task=image,pathx", "protocol=wavspa"], "protocol=wavspa has no recipe for task=pathx"),
        (["runs_dir=taken"], "taken is a file, should be a folder"),
        (["hydra/launcher=submitit_nowhere"], "not installed; run pip install -e '.[slurm]'"),
        (["+train.lr=3", "--multirun"], "use train.learning_rate"),
    ],
)
def test_an_impossible_sweep_is_refused_without_a_traceback(
    tmp_path: Path, words: list[str], expected: str
) -> None:
    (tmp_path / "taken").touch()
    refused = lra(tmp_path, "train", "attention=softmax,fourier", *words)
    assert refused.returncode == 2 and expected in refused.stderr
    assert "Traceback" not in refused.stderr and not refused.stdout


@pytest.mark.parametrize("label", ["[3/20] listops/softmax seed0", "[12/20] " + "x" * 200])
def test_a_bar_of_80_columns_shows_the_loss(label: str) -> None:
    line = tqdm.format_meter(
        600,
        5000,
        12.3,
        ncols=80,
        prefix=bar.shortened(label),
        postfix="loss=1.2345, accuracy=0.4210",
        bar_format=bar.FORMAT,
        unit="step",
    )
    assert len(line) <= 80 and line.startswith(label[:8])
    assert "12%, loss=1.2345, accuracy=0.4210" in line


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("runs_dir=", "runs_dir=: must name a folder"),
        ("protocol.name=../../x", "protocol.name=../../x: must be a plain folder name, without /"),
        ("variant=../..", "variant=../..: must be a plain folder name, without /"),
        # Not only in the first cell of the sweep.
        ("variant=good,../..", "variant=../..: must be a plain folder name, without /"),
        ("seed=0,../../x", "../../x"),
    ],
)
def test_names_that_cannot_be_folders_are_refused_before_anything_is_created(
    tmp_path: Path, word: str, expected: str
) -> None:
    words = ["train", "scale=mini", "debug=true", f"cache_dir={tmp_path}/cache"]
    words += [] if word == "runs_dir=" else [f"runs_dir={tmp_path}/runs"]
    ended = lra(tmp_path, *words, word)
    assert ended.returncode == 2 and expected in ended.stderr + ended.stdout
    assert not list(tmp_path.iterdir()) and not Path("/mini").exists()


@pytest.mark.parametrize(
    ("redirection", "code", "expected"),
    [
        pytest.param(">&-", 0, "", marks=pytest.mark.slow),
        (">&- 2>&-", 0, ""),
        ("> /dev/full", 2, "output: no space left on device\n"),
    ],
)
def test_a_cell_is_trained_even_if_nothing_can_be_printed(
    tmp_path: Path, redirection: str, code: int, expected: str
) -> None:
    if "full" in redirection:
        command = "status runs_dir=."
    else:
        command = "train scale=mini debug=true attention=fourier runs_dir=r cache_dir=c threads=1"
    ended = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -m lra {command} {redirection}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (code, expected)
    assert bool(list(tmp_path.glob("r/**/result.json"))) == ("train" in command)


def test_a_wrong_word_of_any_length_is_reported_in_one_line() -> None:
    with pytest.raises(ConfigError, match="^a{90}") as refused:
        command([f"{'a' * 5000}=1"])
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    with pytest.raises(ConfigError, match="task=b{90}"):
        command([f"task={'b' * 5000}"])


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("/proc/none", "runs_dir=/proc/none: it"), ("n" * 300, "File name too l")],
)
def test_a_runs_folder_that_cannot_be_created_is_reported_in_one_line(
    tmp_path: Path, folder: str, expected: str
) -> None:
    ended = lra(tmp_path, "train", "scale=mini", "debug=true", f"runs_dir={folder}")
    assert ended.returncode == 2 and expected in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_checks_have_names_even_if_python_omits_docstrings(tmp_path: Path) -> None:
    code = "from lra.contract import CHECKS, sentence; print(*map(sentence, CHECKS), sep=chr(10))"
    ended = subprocess.run(
        [sys.executable, "-OO", "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0 and "plain form" in ended.stdout


def test_a_value_that_is_a_list_selects_records() -> None:
    [found] = selections(["train.undecayed=[dt]"], groups())
    assert found.values == {"train.undecayed": [["dt"]]}
