"""Checks before a grid, with a hub on this machine, empty raw files and an empty folder."""

import functools
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lra.data
from lra import preflight
from lra.build import build_task
from lra.compose import load
from lra.tasks import DataError, Source, archive, cache, cifar10
from lra.tasks.listops import FILES, ListOps
from lra.tasks.registry import TASKS


@dataclass
class Hub:
    """A hub that always gives the same answer and notes which data sets it was asked for."""

    status: int = 200
    error: str = ""
    paths: tuple[str, ...] = ()


class Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, state: Hub, *arguments: object) -> None:
        self.state = state
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        # The hub's library asks for other things as well.
        if self.path.startswith("/api/datasets/"):
            self.state.paths += (self.path,)
        body = json.dumps({"id": "owner/name", "sha": "0" * 40}).encode()
        self.send_response(self.state.status)
        if self.state.error:
            self.send_header("X-Error-Code", self.state.error)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Hub()
    with http.server.HTTPServer(("127.0.0.1", 0), functools.partial(Handler, state)) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def empty_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder))
    # The answers that the library caches must not outlive the fake hub.
    kept = "huggingface_hub.constants.AGENT_HARNESSES_PATH"
    monkeypatch.setattr(kept, str(tmp_path / "harnesses.json"), raising=False)
    monkeypatch.delenv("LRA_DATA_DIR", raising=False)
    return folder


def assess(task: str, tmp_path: Path, data_dir: Path | None = None) -> preflight.Finding:
    config = load(f"task={task}", f"cache_dir={tmp_path / 'cache'}")
    return preflight.find_data(config, data_dir)


def test_a_data_set_on_the_hub_is_no_obstacle(hub: Hub, tmp_path: Path) -> None:
    finding = assess("image", tmp_path)
    assert (finding.state, finding.supply) == ("hub", "")
    revision = cifar10.HUB.revision
    assert hub.paths == (f"/api/datasets/uoft-cs/cifar10/revision/{revision}",)


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (404, "RepoNotFound", "the hub has no data set uoft-cs/cifar10"),
        (404, "RevisionNotFound", f"the hub has no revision {cifar10.HUB.revision}"),
        (500, "", "the hub returned an error: "),
    ],
)
def test_an_error_from_the_hub_is_distinguished_from_an_unreachable_hub(
    hub: Hub, tmp_path: Path, status: int, error: str, words: str
) -> None:
    hub.status, hub.error = status, error
    finding = assess("image", tmp_path)
    assert finding.state == "missing" and words in finding.detail
    assert "cannot be reached" not in finding.detail


def test_an_unreachable_hub_is_reported_with_what_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Port 9 of this machine: nothing listens there.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (tmp_path / "raw").mkdir()
    finding = assess("image", tmp_path, tmp_path / "raw")
    assert finding.state == "missing"
    assert "the hub cannot be reached from here: " in finding.detail
    assert f"--revision {cifar10.HUB.revision} --local-dir {tmp_path}/raw/cifar10" in finding.supply


def test_offline_mode_asks_the_hub_for_nothing(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import close_session

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    close_session()
    finding = assess("image", tmp_path)
    close_session()
    assert "cannot be reached from here: " in finding.detail and "HF_HUB_OFFLINE" in finding.detail
    assert not hub.paths


def test_a_data_set_downloaded_earlier_needs_no_connection(
    hub: Hub, tmp_path: Path, empty_hub_cache: Path
) -> None:
    there = empty_hub_cache / "uoft-cs___cifar10/plain_text/0.0.0"
    for revision in ("0" * 40, cifar10.HUB.revision):
        assert assess("image", tmp_path).state == "hub"
        (there / revision).mkdir(parents=True)
        (there / revision / "dataset_info.json").touch()
    assert assess("image", tmp_path).state == "hub, downloaded"
    assert len(hub.paths) == 2


def test_every_task_that_reads_from_the_hub_is_looked_up_there() -> None:
    for name in TASKS:
        try:
            source = build_task(load(f"task={name}")).locate(None)
        except DataError:
            continue
        if source.kind == "published" and not source.files:
            assert source.signature in preflight.HUBS, name


def test_published_and_generated_data_are_distinguished(tmp_path: Path) -> None:
    assert assess("listops", tmp_path).state == "generated"
    folder = tmp_path / "raw" / "listops"
    folder.mkdir(parents=True)
    for name in FILES.values():
        (folder / name).touch()
    finding = assess("listops", tmp_path, tmp_path / "raw")
    assert finding.state == "published" and str(folder) in finding.detail


def test_a_built_data_set_is_found_where_training_looks(tmp_path: Path) -> None:
    config = load("task=listops", "scale=mini", f"cache_dir={tmp_path}")
    config.task.options |= {"num_train": 3, "num_validation": 2, "num_test": 1}
    assert preflight.find_data(config, None).state == "generated"
    built = cache.load("listops", build_task(config), tmp_path).folder
    finding = preflight.find_data(config, None)
    assert finding.state == "in the cache" and str(built) in finding.detail


def test_a_task_without_its_files_names_the_command_that_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locate(task: ListOps, data_dir: Path | None) -> Source:
        raise DataError("nothing in any known folder")

    monkeypatch.setattr(ListOps, "locate", locate)
    finding = assess("listops", tmp_path, tmp_path / "raw")
    assert (finding.state, finding.detail) == ("missing", "nothing in any known folder")
    command = "lra data --fetch task=listops protocol=nystromformer data_dir="
    assert finding.supply == f"{command}{tmp_path}/raw"


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    """Return the exit status, stdout and stderr of the command."""
    monkeypatch.setattr(sys, "argv", ["preflight", *words])
    try:
        preflight.main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    return status, *capsys.readouterr()


def test_missing_data_stop_the_grid_unless_they_are_skipped(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rest = [f"cache_dir={tmp_path}", "train.steps=3,4", "hydra.launcher.n_jobs=2", "seed=0, 1"]
    command = functools.partial(run, monkeypatch, capsys)
    assert command("task=image,listops", *rest)[:2] == (0, "image,listops\n")
    hub.status, hub.error = 404, "RepoNotFound"
    status, out, err = command("task=image,listops", *rest)
    assert (status, out) == (1, "")
    assert "| image   | missing " in err and "| listops | generated " in err
    assert "MISSING=skip" in err
    assert command("task=image,listops", "--missing", "skip", *rest)[:2] == (0, "listops\n")
    status, out, err = command("task=image", "--missing", "skip", *rest)
    assert (status, out) == (1, "") and "Nothing is left" in err
    status, out, err = command("task=listops,nothing", *rest)
    assert (status, out) == (2, "") and "nothing" in err


def test_every_value_that_decides_the_data_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = functools.partial(run, monkeypatch, capsys)
    rest = [f"data_dir={tmp_path}", f"cache_dir={tmp_path}", "seed=0,1"]
    # Generated data at one scale say nothing of those of another.
    status, out, err = command("task=retrieval,listops", "scale=mini,paper", *rest)
    assert (status, out) == (1, "")
    assert "| retrieval | stand-in " in err and "| retrieval | missing " in err
    sizes = ["task=pathfinder", "task.options.source=generated,published", *rest]
    status, _, err = command(*sizes)
    assert status == 1 and "| generated " in err and "no pathfinder32 is in" in err
    status, _, err = command("task=pathfinder", "+task.options.source=published", *rest)
    assert status == 1 and "| missing " in err


def test_a_folder_of_raw_data_that_does_not_exist_is_refused_as_in_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["task=recall,pathfinder", "scale=small", f"data_dir={tmp_path}/nothing"]
    status, out, err = run(monkeypatch, capsys, *words)
    assert (status, out) == (1, "") and err.count("/nothing does not exist") == 2


def test_cached_data_of_another_kind_than_is_demanded_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = SimpleNamespace(source=Source("other", "a copy"), folder=tmp_path)
    monkeypatch.setattr(cache, "built", lambda *_: cached)
    finding = assess("text", tmp_path)
    assert (finding.state, finding.detail) == ("in the cache", f"{tmp_path}: a copy")
    config = load("task=text", "task.options.source=published", f"cache_dir={tmp_path}")
    finding = preflight.find_data(config, None)
    assert finding.state == "refused" and "a copy is other, by its content" in finding.detail


def test_a_users_own_task_may_call_any_option_source() -> None:
    cache.check_demand(SimpleNamespace(source="wiki"), Source("other", "files"))
    with pytest.raises(DataError, match="source=generated: files is other, by its content"):
        cache.check_demand(SimpleNamespace(source="generated"), Source("other", "files"))


def test_only_tasks_that_lack_published_files_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[Any] = []
    monkeypatch.setattr(archive, "fetch", lambda *words: fetched.append(words))
    kinds = {"a": "generated", "b": "published", "c": "other"} | dict.fromkeys("de", "generated")
    # With their options, these tasks would not read published files.
    never = {"d": {"part": None}, "e": {"source": "generated"}}
    monkeypatch.setattr(archive, "PARTS", dict.fromkeys("abcde"))
    configs = [SimpleNamespace(task=SimpleNamespace(name=name)) for name in kinds]
    monkeypatch.setattr(
        lra.data,
        "build_task",
        lambda config: SimpleNamespace(
            locate=lambda folder: Source(kinds[config.task.name], ""),
            **never.get(config.task.name, {}),
        ),
    )
    lra.data.fetch(configs, tmp_path)
    assert [(list(wanted), folder) for wanted, folder in fetched] == [(["a"], tmp_path)]


def test_a_task_without_published_data_at_a_scale_fetches_nothing() -> None:
    for scale, expected in (("small", False), ("paper", True)):
        for name in ("listops", "pathfinder"):
            task = build_task(load(f"task={name}", f"scale={scale}"))
            assert task.has_published is expected
            assert archive.part_of(name, task) == (name if expected else None)
    easy = build_task(load("task=pathfinder", "task.options.contour_length=6"))
    assert easy.has_published and easy.part is None
    parts = {
        size: build_task(load("task=pathfinder", f"task.options.size={size}")).part
        for size in (32, 64, 128, 256)
    }
    assert parts == {32: "pathfinder", 64: None, 128: "pathx", 256: None}


def test_fetching_needs_the_published_scale_and_a_data_dir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(archive, "fetch", lambda *words: pytest.fail("fetched"))
    for words in (["scale=mini", f"data_dir={tmp_path}"], ["scale=paper"]):
        monkeypatch.setattr(sys, "argv", ["data", "--fetch", "task=listops", *words])
        with pytest.raises(SystemExit) as ended:
            lra.data.main()
        assert ended.value.code == 2 and "--fetch needs data_dir" in capsys.readouterr().err
