"""How far a model looks, checked on functions whose answer is known."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from tiny_cell import configure
from torch import Tensor

from lra import reach
from lra.batches import Batches
from lra.reach import Profile, draw, influence, longest, measure, profile
from lra.record import RECORD, read_record
from lra.runner import run_cell
from lra.tasks import Split
from models.encoder import Classifier
from models.longformer import Longformer
from models.sizes import ModelConfig
from models.softmax import Softmax

N, D = 61, 6
SMALL = ModelConfig(
    layers=2,
    dim=8,
    heads=2,
    head_dim=4,
    mlp_dim=12,
    max_length=N,
    vocab_size=11,
    classifier_dims=[],
    embedding_std=1.0,
    dropout=0.0,
)


def profile_of(function, positions: list[int], real: Tensor | None = None) -> Profile:
    x = torch.randn(3, N, D, dtype=torch.float64)
    rows = influence(function, x, positions, 8, torch.Generator().manual_seed(0))
    real = torch.ones(3, N, dtype=torch.bool) if real is None else real
    return profile(rows, torch.tensor(positions), real)


def test_under_the_identity_every_token_looks_only_at_itself() -> None:
    found = profile_of(lambda x: x, [0, 30, 60])
    assert found.weights[0] == 1 and found.weights[1:].sum() == 0
    assert (found.mean, found.median, found.beyond(0)) == (0, 0, 0)


def test_the_mean_over_all_positions_has_a_flat_profile() -> None:
    mean = profile_of(lambda x: x.mean(1, keepdim=True).expand_as(x), [0, 20, 60])
    expected = np.zeros(N)
    for position in (0, 20, 60):
        np.add.at(expected, np.abs(position - np.arange(N)), 1 / (3 * N))
    np.testing.assert_allclose(mean.weights, expected, rtol=1e-9)
    assert mean.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize(("window", "layers"), [(1, 3), (4, 2)])
def test_a_window_never_reaches_beyond_its_width_times_the_number_of_layers(
    window: int, layers: int
) -> None:
    def windows(x: Tensor) -> Tensor:
        for _ in range(layers):
            x = F.avg_pool1d(x.mT, 2 * window + 1, 1, window).mT.tanh()
        return x

    found = profile_of(windows, [0, 17, 60])
    assert found.beyond(window * layers) == 0
    assert found.weights[window * layers] > 0


def test_an_exponential_average_has_a_geometric_profile() -> None:
    decay, last = 0.9, N - 1
    mix = torch.randn(D, D, dtype=torch.float64)

    def average(x: Tensor) -> Tensor:
        steps = torch.arange(N, dtype=torch.float64)
        lags = steps[:, None] - steps
        kernel = torch.where(lags >= 0, decay**lags, 0.0)
        return torch.einsum("ij,bjd,de->bie", kernel, x, mix)

    found = profile_of(average, [last])
    law = decay ** np.arange(N)
    np.testing.assert_allclose(found.weights, law / law.sum(), rtol=0.02)
    assert found.median == math.ceil(math.log((1 + decay**N) / 2) / math.log(decay)) - 1


def test_the_squared_norm_of_a_jacobian_is_estimated_without_bias() -> None:
    weights = torch.randn(5, 4, 5, 4, dtype=torch.float64)

    def linear(x: Tensor) -> Tensor:
        return torch.einsum("idje,bje->bid", weights, x)

    x = torch.randn(4000, 5, 4, dtype=torch.float64)
    rows = influence(linear, x, [2], 1, torch.Generator().manual_seed(1))
    squares = rows[:, 0].square()  # (B, N)
    exact = weights[2].square().sum((0, 2))
    standard_error = squares.std(0) / len(x) ** 0.5
    assert ((squares.mean(0) - exact).abs() < 3 * standard_error).all()
    assert (standard_error < 0.02 * exact).all()


@pytest.mark.parametrize(("projections", "lost"), [(2, 0.11), (4, 0.06)])
def test_the_norm_itself_is_underestimated_most_at_rank_one(projections: int, lost: float) -> None:
    # The root mean square of k normal numbers is on average the mean of chi over sqrt(k).
    k = projections
    share = math.sqrt(2 / k) * math.gamma((k + 1) / 2) / math.gamma(k / 2)
    assert 1 - share == pytest.approx(lost, abs=0.005)
    x = torch.zeros(40_000, 1, D, dtype=torch.float64)
    one, every = torch.full((D, D), 1 / D, dtype=torch.float64), torch.eye(D).double() / D**0.5

    def missing(jacobian: Tensor) -> float:
        generator = torch.Generator().manual_seed(1)
        rows = influence(lambda x: x @ jacobian, x, [0], projections, generator)
        return 1 - float(rows.mean())

    assert missing(one) == pytest.approx(lost, abs=0.01)
    assert 0 < missing(every) < lost / 4


def test_rows_of_padding_are_left_out() -> None:
    real = torch.ones(3, N, dtype=torch.bool)
    real[:, 50:] = False
    shift = profile_of(lambda x: x.roll(5, 1), [20, 55], real)
    assert shift.weights[5] == 1
    with pytest.raises(ValueError, match="no position is that of a real token"):
        profile_of(lambda x: x, [55], real)
    with pytest.raises(ValueError, match="depends on no input"):
        profile_of(lambda x: 0 * x, [3])


def test_a_windowed_model_stays_within_its_reach_and_softmax_does_not() -> None:
    tokens = torch.randint(1, 11, (2, N))

    def window(shape):  # two tokens to either side, none global
        return Longformer(shape, window=4, num_global=0)

    near = measure(Classifier(SMALL, window, 2).eval(), tokens, None, 8, 2, 0)
    assert near.beyond(2 * SMALL.layers) == 0 and near.weights[2 * SMALL.layers] > 0
    config = replace(SMALL, pooling="cls")
    far = measure(Classifier(config, Softmax, 2).eval(), tokens, None, 8, 2, 0)
    assert far.beyond(2 * SMALL.layers) > 0.05


def test_bins_double_in_width_and_lose_nothing() -> None:
    found = profile_of(lambda x: x.cumsum(1), [N - 1])
    centres, shares = found.binned()
    assert centres[:4].tolist() == [0, 1, 2.5, 5.5]
    assert shares.sum() == pytest.approx(1) and shares[3] == pytest.approx(4 / N)


@pytest.mark.parametrize("sequences", [1, 2])
@pytest.mark.parametrize("number", [1, 3, 4, 99])
def test_the_longest_inputs_are_chosen_however_many_are_asked_for(
    sequences: int, number: int
) -> None:
    lengths = np.array([7, 40, 3, 33, 12, 12, 38, 1, 21, 5])  # 10, or 5 pairs
    offsets = np.concatenate([[0], lengths.cumsum()])
    tokens = np.repeat(np.arange(len(lengths)), lengths).astype(np.uint8)
    split = Split(tokens, offsets, np.zeros(len(lengths) // sequences, np.int64))
    batches = Batches(
        split, padded_length=64, truncate=64, id_shift=1, trim=True, device=torch.device("cpu")
    )
    found, mask = longest(batches, number)
    order = [7, 2, 9, 0, 4, 5, 8, 3, 6, 1][-number:]
    assert mask is not None and mask.sum(1).tolist() == lengths[order].tolist()
    for row, real, which in zip(found, mask, order, strict=True):
        assert set(row[real].tolist()) == {which + 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    for name in ("one", "other"):
        (folder / name).mkdir()
        run_cell(configure(folder, "attention=softmax"), folder / name)
    return folder


def command(monkeypatch: pytest.MonkeyPatch, finished: Path, *words: object) -> None:
    given = [*map(str, words), "--cache-dir", str(finished / "cache"), "--examples", "2"]
    monkeypatch.setattr("sys.argv", ["reach", *given])
    reach.main()


def test_the_command_prints_and_draws_a_run_beside_its_initialisation(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture = tmp_path / "reach.png"
    command(monkeypatch, finished, finished / "one", "--out", picture)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split(" | ")[1].strip() == "mean distance"
    step = read_record(finished / "one" / RECORD).best_step
    assert lines[2].startswith(f"| listops/softmax seed0, update {step} ")
    assert lines[3].startswith("| listops/softmax seed0 at initialisation ")
    assert picture.read_bytes()[1:4] == b"PNG"


def test_a_model_and_its_initialisation_are_drawn_in_one_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    names = ["a seed0, update 9", "a seed0 at initialisation", "b, update 5", "b at initialisation"]
    draw({name: Profile(np.full(8, 1 / 8)) for name in names}, tmp_path / "a.png")
    lines = kept[0].axes[0].get_lines()
    assert [line.get_label() for line in lines] == names
    looks = [(line.get_color(), line.get_linestyle()) for line in lines]
    assert looks == [("C0", "-"), ("C0", "--"), ("C1", "-"), ("C1", "--")]


def test_no_two_of_twenty_runs_look_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    draw({f"{run}": Profile(np.full(8, 1 / 8)) for run in range(20)}, tmp_path / "a.png")
    lines = kept[0].axes[0].get_lines()
    assert len({(to_hex(line.get_color()), line.get_marker()) for line in lines}) == 20


def test_runs_with_the_same_name_are_distinguished_by_their_folders(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, finished, finished / "one", finished / "other", finished / "one")
    lines = capsys.readouterr().out.splitlines()
    for name, row in zip(("one", "other"), (2, 4), strict=True):
        assert lines[row].startswith(f"| listops/softmax seed0, {finished / name}, update ")
        assert lines[row + 1].startswith(f"| listops/softmax seed0, {finished / name} at init")
    assert len(lines) == 6


def test_the_command_refuses_in_one_line_what_it_cannot_do(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refusal(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            command(monkeypatch, finished, *words)
        assert ended.value.code == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    one, measured = finished / "one", []
    with monkeypatch.context() as patch:
        # Errors come before anything is measured, which may take minutes.
        patch.setattr(reach, "measure", lambda *arguments: measured.append(arguments))
        assert refusal(one, "--out", tmp_path / "a.txt").endswith("must end in .png or .svg")
        message = refusal(one, "--out", tmp_path / "none" / "a.png")
        assert f"there is no folder {tmp_path / 'none'}" in message
        (tmp_path / "b.png").mkdir()
        assert "is a folder" in refusal(one, "--out", tmp_path / "b.png")
        assert "result.json" in refusal(tmp_path)
        assert f"{tmp_path / 'gone'}: neither a run folder nor" in refusal(tmp_path / "gone")
        words = ("scale=mini", "task=listops", f"runs_dir={tmp_path}")
        assert refusal(*words).endswith("result.json: no such file; no run has ended here")
        assert "device=tpu: must be auto, cpu, cuda" in refusal(one, "--device", "tpu")
    assert not measured
    # A record of another version is named by its file.
    shutil.copytree(one, tmp_path / "later")
    later = json.loads((one / "result.json").read_text())
    later["config"]["model"]["later"] = 1
    (tmp_path / "later" / "result.json").write_text(json.dumps(later))
    assert refusal(tmp_path / "later").startswith(f"{tmp_path / 'later' / 'result.json'}: Key ")
    # Inputs from other data would answer another question.
    text = (one / "result.json").read_text()
    fingerprint = json.loads(text)["data_fingerprint"]
    shutil.copytree(one, tmp_path / "copy")
    (tmp_path / "copy" / "result.json").write_text(text.replace(fingerprint, "0" * 64))
    assert "the data differ from those of the run" in refusal(tmp_path / "copy")
