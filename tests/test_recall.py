"""Recall: labels recomputed from the sequences, the law of distances, and baselines at chance."""

import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lra.tasks import Split, cache
from lra.tasks.recall import MIN_DISTANCE, Recall, stratum
from models.encoder import Classifier
from models.longformer import Longformer
from models.sizes import ModelConfig
from models.softmax import Softmax

# A change to the generator changes every number obtained with it: raise its version then.
FINGERPRINTS = {
    "joined": "e07b753c6509fa424b7ef66ef0fa619dba435b1f470fffaf91fcfd1d7b49362e",
    "adjacent": "84f4ba674ba8722ae3ee4856fcc49dd0d5836986b89ccfbe0272aa1061d83e5c",
}
SMALL: dict[str, Any] = {"length": 128, "num_train": 4_000, "num_validation": 50, "num_test": 2_000}
FORMS = [
    {"pairs": pairs, "filler": filler}
    for pairs in ("joined", "adjacent")
    for filler in ("random", "near_miss")
]


def make(**options: Any) -> Recall:
    return Recall(**SMALL | options)


def split_of(task: Recall, name: str = "test") -> Split:
    chunks = list(task.examples(name, task.sizes[name]))
    tokens = np.concatenate([symbols for symbols, _ in chunks])
    offsets = np.arange(len(tokens) + 1, dtype=np.int64) * task.length
    return Split(tokens.reshape(-1), offsets, np.concatenate([labels for _, labels in chunks]))


def pairs_in(task: Recall, sequence: list[int]) -> list[tuple[int, int, int]]:
    """Return the place, key and value of every pair, read symbol by symbol."""
    keys, values = task.num_keys, task.num_values
    found = []
    for place, symbol in enumerate(sequence[:-1]):
        after = sequence[place + 1]
        if task.pairs == "joined":
            if keys <= symbol < keys + keys * values:
                found.append((place, *divmod(symbol - keys, values)))
        elif symbol < keys <= after < keys + values:
            found.append((place, symbol, after - keys))
    return found


@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form.values()))
def test_the_label_is_the_value_of_the_last_key_at_the_stated_distance(
    form: dict[str, Any],
) -> None:
    task = make(**form, num_pairs=8, num_keys=11)
    split = split_of(task)
    rows = split.tokens.reshape(-1, task.length).tolist()
    for row, label, distance in zip(rows, split.labels, task.groups(split), strict=True):
        pairs = pairs_in(task, row)
        assert sorted(value for _, _, value in pairs) == [0, 0, 1, 1, 2, 2, 3, 3]
        assert len({key for _, key, _ in pairs}) == 8
        [(place, value)] = [(place, value) for place, key, value in pairs if key == row[-1]]
        assert value == label and task.length - 1 - place == distance


def test_near_misses_are_keys_without_values_and_values_without_keys() -> None:
    task = make(pairs="adjacent", filler="near_miss")
    rows = split_of(task).tokens.reshape(-1, task.length)
    paired, symbols = 2 * task.num_pairs + 1, task.num_keys + task.num_values
    assert ((rows < symbols).sum(1) > paired + 15).all()
    joined = make(filler="near_miss")
    rows = split_of(joined).tokens.reshape(-1, joined.length)
    # The key that is asked for is also among the decoys, where it reveals nothing.
    assert ((rows[:, :-1] == rows[:, -1:]).sum(1) > 0).mean() > 0.9


def test_distances_are_uniform_on_a_log_scale_and_places_of_pairs_reveal_nothing() -> None:
    task = make(num_test=8_000, length=256)
    split = split_of(task)
    distances = task.groups(split)
    assert distances.min() == MIN_DISTANCE and distances.max() < 256
    shares = np.log(distances / 4) / np.log(64)
    # Kolmogorov's distance; steps of whole tokens add up to log(5 / 4) / log(64), half a bin.
    ordered = np.sort(shares)
    gap = np.abs(ordered - np.arange(1, 8_001) / 8_000).max()
    assert gap < math.log(5 / 4) / math.log(64) + 1.63 / math.sqrt(8_000)
    pairs = np.array([[p for p, _, _ in pairs_in(task, row)] for row in _rows(task, split)])
    places = np.sort(task.length - 1 - pairs, 1)
    asked = (places == distances[:, None]).argmax(1)
    counts = np.bincount(asked, minlength=4)
    assert np.abs(counts - 2_000).max() < 5 * math.sqrt(8_000 * 0.25 * 0.75)
    # The nearest pair lies as far away whether it is asked for or not.
    near = [np.log(places[(asked == 0) == here, 0]).mean() for here in (True, False)]
    assert abs(near[0] - near[1]) < 5 * np.log(places[:, 0]).std() / math.sqrt(2_000)


def _rows(task: Recall, split: Split) -> list[list[int]]:
    rows: list[list[int]] = split.tokens.reshape(-1, task.length).tolist()
    return rows


@pytest.mark.parametrize(("length", "strata"), [(8, 2), (256, 8), (1024, 4), (4096, 16)])
def test_every_distance_belongs_to_exactly_one_stratum(length: int, strata: int) -> None:
    found = []
    for place in range(strata):
        for odd in (False, True):
            distances, upto = stratum(length, strata, place, odd)
            low, high = (4 * (length / 4) ** (each / strata) for each in (place, place + 1))
            assert (distances >= low - 1e-6).all() and (distances < high + 1e-6).all()
            assert (distances % 2 == odd).all() and upto[-1] == 1.0
            # The integral of 1 / d from each distance to the next.
            widths = np.log1p(1 / distances)
            np.testing.assert_allclose(upto, widths.cumsum() / widths.sum(), rtol=1e-12)
            found += distances.tolist()
    assert sorted(found) == list(range(MIN_DISTANCE, length))


def counts(split: Split, length: int) -> NDArray[np.float64]:
    """Return how often every symbol occurs, followed by which symbol is the last."""
    rows = split.tokens.reshape(-1, length)
    every = [(rows == symbol).sum(1) for symbol in range(64)]
    last = [rows[:, -1] == symbol for symbol in range(64)]
    return np.stack([*every, *last], 1).astype(float)


def softmax_regression(
    train: NDArray[np.float64],
    labels: NDArray[np.int64],
    test: NDArray[np.float64],
    truth: NDArray[np.int64],
) -> float:
    """Return the test accuracy of a linear classifier of several classes, fitted by LBFGS."""
    varied = train.std(0) > 0
    scale = train[:, varied].std(0)
    x, z = (torch.tensor(rows[:, varied] / scale) for rows in (train, test))
    layer = torch.nn.Linear(x.shape[1], int(labels.max()) + 1, dtype=torch.float64)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=25)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(layer(x), torch.tensor(labels))
        value = value + 1e-3 * layer.weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return float((layer(z).argmax(1).numpy() == truth).mean())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: " ".join(form.values()))
def test_a_classifier_that_only_counts_symbols_stays_at_chance(form: dict[str, Any]) -> None:
    task = make(**form)
    train, test = split_of(task, "train"), split_of(task)
    found = softmax_regression(
        counts(train, task.length), train.labels, counts(test, task.length), test.labels
    )
    assert found < 0.25 + 4 * math.sqrt(0.25 * 0.75 / len(test))
    # The same baseline learns when it sees which value belongs to the key.
    known = np.eye(4)[test.labels]
    assert softmax_regression(known, test.labels, known, test.labels) == 1.0


def test_with_adjacent_pairs_symbol_counts_are_the_same_whatever_the_label() -> None:
    """No function of counts can succeed: some example for every label has the same counts."""
    task = make(pairs="adjacent", num_test=50)
    split = split_of(task)
    for row, label in zip(_rows(task, split), split.labels, strict=True):
        pairs = pairs_in(task, row)
        [asked] = [place for place, key, _ in pairs if key == row[-1]]
        labels = {int(label)}
        for place, _, value in pairs:
            other = list(row)
            # The two pairs swap their values.
            other[asked + 1], other[place + 1] = other[place + 1], other[asked + 1]
            assert sorted(other) == sorted(row)
            assert (asked, row[-1], value) in pairs_in(task, other)
            labels.add(value)
        assert labels == {0, 1, 2, 3}


def test_only_a_share_of_the_training_examples_is_easy() -> None:
    task = make(easy=0.6)
    for name, share in {"train": 0.6 * 3 / 4, "test": 0.0}.items():
        split = split_of(task, name)
        found = [pairs_in(task, row) for row in _rows(task, split)]
        different = np.array([len({key for _, key, _ in pairs}) for pairs in found])
        assert (different < 4).mean() == pytest.approx(share, abs=0.03)
        assert set(different) == ({1, 2, 3, 4} if name == "train" else {4})
        # Repetitions: from none to a pair in every second place.
        number = np.array([len(pairs) for pairs in found])
        assert number.max() == (task.length // 2 - 1 if name == "train" else 4)
        # A key has one value however often it occurs; that of the last key is the label.
        for pairs, row, label in zip(found, _rows(task, split), split.labels, strict=True):
            values = {(key, value) for _, key, value in pairs}
            assert len(values) == len({key for key, _ in values})
            assert (row[-1], label) in values
    assert (split_of(make(easy=0.0), "train").tokens != split_of(task, "train").tokens).any()


@pytest.mark.parametrize("pairs", FINGERPRINTS)
def test_the_bytes_are_the_same_on_every_machine(pairs: str, tmp_path: Path) -> None:
    task = make(pairs=pairs, filler="near_miss" if pairs == "adjacent" else "random")
    data = cache.load("recall", task, tmp_path)
    assert data.source.kind == "generated"
    assert data.fingerprint == FINGERPRINTS[pairs]
    other = cache.load("recall", replace(task, data_seed=1), tmp_path)
    assert other.fingerprint != data.fingerprint


@pytest.mark.parametrize("length", [256, 4096])
def test_a_thousand_examples_are_drawn_in_half_a_second(length: int) -> None:
    task = Recall(length=length)
    next(task.examples("train", 1))
    began = time.process_time()
    sum(len(labels) for _, labels in task.examples("train", 1_000))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"num_pairs": 6},
            "num_pairs=6: must be a multiple of num_values=4, so that counts reveal",
        ),
        ({"num_keys": 3}, "num_pairs=4: must be at most num_keys=3, as every key has one value"),
        ({"length": 8}, "num_pairs=4: must be fewer, as a sequence of length=8 has no room"),
        (
            {"length": 16, "num_pairs": 8, "num_keys": 8},
            "num_pairs=8: must be fewer, as a sequence of length=16",
        ),
        ({"length": 7}, "length=7: must be at least 8"),
        ({"length": 10**6}, "length=1000000: must be at most 65,536"),
        ({"num_values": 1}, "num_values=1: must be at least 2"),
        ({"num_keys": 99}, "num_keys=99: with num_values=4 and .* must be at most 255"),
        ({"easy": 1.5}, "easy=1.5: must be a share, 0 to 1"),
        ({"pairs": "apart"}, "pairs=apart: must be joined or adjacent"),
        ({"filler": "none"}, "filler=none: must be random or near_miss"),
        ({"num_test": 0}, "num_test=0: must be at least 1"),
    ],
)
def test_impossible_options_are_refused_with_an_explanation(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"task.options.{message}"):
        Recall(**options)


def windowed(window: int, layers: int, length: int) -> Classifier:
    sizes = {"dim": 16, "heads": 2, "head_dim": 8, "mlp_dim": 16, "vocab_size": 256}
    config = ModelConfig(
        layers=layers, max_length=length, pooling="last", embedding_std=1.0, **sizes
    )
    torch.manual_seed(0)
    return Classifier(config, partial(Longformer, window=window, num_global=0), 4).eval()


@pytest.mark.parametrize(("window", "layers"), [(8, 2), (16, 1), (6, 3)])
def test_a_window_never_answers_from_a_pair_beyond_its_reach(window: int, layers: int) -> None:
    """Another value of a pair further away than `window // 2` tokens per layer changes nothing.

    A window of w has `window // 2` tokens to either side, so L layers never get beyond w L.
    """
    task = make(num_test=200)
    split = split_of(task)
    tokens = torch.tensor(split.tokens.reshape(-1, task.length)).long() + task.id_shift
    places = task.length - 1 - torch.tensor(task.groups(split))
    rows, reach = torch.arange(200), window // 2 * layers
    other = tokens.clone()
    # Give the same key another value.
    first = task.num_keys + task.id_shift
    pair = tokens[rows, places] - first
    other[rows, places] = first + pair // 4 * 4 + (pair + 1) % 4
    model = windowed(window, layers, task.length)
    full = Classifier(
        ModelConfig(
            layers=1, dim=16, heads=2, head_dim=8, mlp_dim=16, vocab_size=256, max_length=128,
            pooling="last", embedding_std=1.0,
        ),
        Softmax,
        4,
    ).eval()  # fmt: skip
    with torch.no_grad():
        changed = (model(tokens) != model(other)).any(1)
        assert (full(tokens) != full(other)).any(1).all()
    beyond = torch.tensor(task.groups(split)) > reach
    assert beyond.sum() > 20 and not changed[beyond].any()
    assert changed[~beyond].all() and (~beyond).sum() > 20
