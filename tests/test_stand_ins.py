"""Stand-ins: labels recomputed from the examples, and baselines that must learn nothing."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lra.tasks import Split, cache
from lra.tasks.registry import STAND_INS
from lra.tasks.stand_ins import Draws, StandIn
from lra.tasks.stand_ins.pathfinder import MARKER, PATH, PathfinderStandIn, draw, wear
from lra.tasks.stand_ins.retrieval import TOPICS, RetrievalStandIn
from lra.tasks.stand_ins.text import TextStandIn

# A change to a generator changes every number obtained with it: raise its version then.
FINGERPRINTS = {
    "text": "0811ee5119ec2988251c447642b070db55a4ba631f23d9bb35ec0e3c586652b8",
    "retrieval": "8d274261cc29d607b1762efcc9d73a2b9e668d96f70239f0248126878c1343e3",
    "pathfinder": "a7d2ce5e99d7088760d03442cb3291ec4ec31f6c313d52cd982bee5e84259805",
}
TASKS: dict[str, StandIn] = {
    "text": TextStandIn(num_train=4_000),
    "retrieval": RetrievalStandIn(num_train=4_000),
    "pathfinder": PathfinderStandIn(num_train=4_000),
}
# The most that a logistic regression on counts may score.
MAX_BY_COUNTS = {"text": 0.78, "retrieval": 0.78}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, cache.Dataset]:
    folder = tmp_path_factory.mktemp("cache")
    return {name: cache.load(name, task, folder) for name, task in TASKS.items()}


def sequences(split: Split) -> list[bytes]:
    bounds = zip(split.offsets[:-1], split.offsets[1:], strict=True)
    return [split.tokens[a:b].tobytes() for a, b in bounds]


def counts(texts: list[bytes], part: slice) -> NDArray[np.float64]:
    """Return how often every byte occurs in a part of each text."""
    rows = [np.bincount(np.frombuffer(text[part], np.uint8), minlength=256) for text in texts]
    return np.array(rows, float)


def logistic_accuracy(
    train: NDArray[np.float64],
    labels: NDArray[np.int64],
    test: NDArray[np.float64],
    truth: NDArray[np.int64],
) -> float:
    """Return the test accuracy of a logistic regression fitted by Newton's method."""
    varied = train.std(0) > 0
    mean, deviation = train[:, varied].mean(0), train[:, varied].std(0)
    x, z = (
        np.concatenate([(rows[:, varied] - mean) / deviation, np.ones((len(rows), 1))], 1)
        for rows in (train, test)
    )
    weights = np.zeros(x.shape[1])
    for _ in range(8):
        rate = 1 / (1 + np.exp(-x @ weights))
        curvature = (x.T * (rate * (1 - rate))) @ x + np.eye(x.shape[1])
        weights += np.linalg.solve(curvature, x.T @ (labels - rate) - weights)
    return float(((z @ weights > 0) == truth).mean())


def pair_features(split: Split, part: slice) -> NDArray[np.float64]:
    """Return counts of both texts, their products and distances, as used to match pairs."""
    both = counts(sequences(split), part).reshape(len(split), 2, 256)
    first, second = both[:, 0], both[:, 1]
    return np.concatenate([first, second, first * second, np.abs(first - second)], 1)


def features(name: str, split: Split, part: slice) -> NDArray[np.float64]:
    return pair_features(split, part) if name == "retrieval" else counts(sequences(split), part)


def baseline(name: str, data: cache.Dataset, part: slice) -> float:
    train, test = data.splits["train"], data.splits["test"]
    return logistic_accuracy(
        features(name, train, part), train.labels, features(name, test, part), test.labels
    )


def chance_limit(split: Split) -> float:
    """Return the accuracy that guessing exceeds once in ten thousand times."""
    return split.majority_rate + 4 * math.sqrt(0.25 / len(split))


@pytest.mark.parametrize("name", ["text", "retrieval"])
def test_the_first_50_bytes_reveal_nothing(name: str, data: dict[str, cache.Dataset]) -> None:
    assert baseline(name, data[name], slice(50)) < chance_limit(data[name].splits["test"])
    # The same baseline learns when it sees everything, which makes it a baseline.
    assert 0.6 < baseline(name, data[name], slice(None)) < MAX_BY_COUNTS[name]


def test_the_opinion_that_leads_after_the_turn_decides_whatever_led_before_it(
    data: dict[str, cache.Dataset],
) -> None:
    split = data["text"].splits["test"]
    disagree = 0
    for text, label in zip(sequences(split), split.labels, strict=True):
        leads = []
        for side in text.split(b" yet "):
            # A word of opinion has two such consonants, any other word none.
            praise, blame = (sum(map(side.count, letters)) / 2 for letters in (b"fv", b"xz"))
            assert {praise, blame} in ({1, 2}, {2, 3})
            leads.append(praise > blame)
        assert leads[1] == label
        disagree += leads[0] != label
    assert disagree / len(split) == pytest.approx(0.5, abs=0.05)


def test_counting_opinions_over_the_whole_review_is_not_enough(
    data: dict[str, cache.Dataset],
) -> None:
    split = data["text"].splits["test"]
    guesses = []
    for text in sequences(split):
        praise, blame = (sum(map(text.count, letters)) for letters in ((b"f", b"v"), (b"x", b"z")))
        guesses.append(praise > blame)
    assert 0.7 < (np.array(guesses) == split.labels).mean() < 0.8


def topics(text: bytes) -> list[int]:
    """Return the topic of most of the rare words before the turn, and of those after it."""
    letters = [[side.count(letter) for letter in TOPICS.encode()] for side in text.split(b" yet ")]
    # Five words of two rare consonants each, three of them of the topic and two of any.
    assert all(sum(side) == 10 and max(side) >= 6 for side in letters)
    return [side.index(max(side)) for side in letters]


def test_documents_belong_together_if_their_topics_after_the_turn_are_the_same(
    data: dict[str, cache.Dataset],
) -> None:
    split = data["retrieval"].splits["test"]
    pairs = np.array([topics(text) for text in sequences(split)]).reshape(-1, 2, 2)
    same = pairs[:, 0] == pairs[:, 1]
    assert (same[:, 1] == split.labels).all()
    # By the topics before it, a ninth would belong together whatever the label.
    for label in (0, 1):
        assert same[split.labels == label, 0].mean() == pytest.approx(1 / len(TOPICS), abs=0.05)


def joined(image: NDArray[np.uint8]) -> bool:
    """Determine by flood fill whether one path joins the two markers."""
    start, end = (tuple(place) for place in np.argwhere(image == MARKER))
    seen, border = {start}, [start]
    while border:
        row, column = border.pop()
        for near in np.ndindex(3, 3):
            place = (row + near[0] - 1, column + near[1] - 1)
            inside = all(0 <= axis < len(image) for axis in place)
            if inside and image[place] and place not in seen:
                seen.add(place)
                border.append(place)
    return end in seen


@pytest.mark.parametrize("size", [6, 10, 12])
def test_one_path_joins_the_markers_if_and_only_if_the_label_says_so(size: int) -> None:
    draws = Draws(f"paths of size {size}")
    for label in [0, 1] * 150:
        assert joined(draw(draws, label, size)) == bool(label)


def test_wear_removes_pixels_of_paths_adds_stray_ones_and_spares_the_markers() -> None:
    draws = Draws("wear")
    images = np.stack([draw(draws, label, 10) for label in [0, 1] * 500])
    worn = np.stack([wear(draws, image) for image in images])
    assert ((images == MARKER) == (worn == MARKER)).all()
    assert set(np.unique(worn)) == {0, PATH, MARKER}
    missing = [(worn[i] == 0)[image == PATH].mean() for i, image in enumerate(images)]
    stray = [(worn[i] == PATH)[image == 0].mean() for i, image in enumerate(images)]
    # On average half of the maximum.
    assert np.mean(missing) == pytest.approx(0.45, abs=0.04)
    assert np.mean(stray) == pytest.approx(0.04, abs=0.004)
    assert np.corrcoef(missing, stray)[0, 1] > 0.5
    assert min(missing) < 0.1 and max(missing) > 0.8


def test_the_distance_between_the_markers_reveals_nothing(data: dict[str, cache.Dataset]) -> None:
    guesses = {}
    for name in ("train", "test"):
        split = data["pathfinder"].splits[name]
        images = split.tokens.reshape(-1, 10, 10)
        places = np.array([np.argwhere(image == MARKER) for image in images])
        squared = ((places[:, 0] - places[:, 1]) ** 2).sum(1)
        guesses[name] = squared, split.labels
    squared, labels = guesses["train"]
    votes = {value: labels[squared == value].mean() > 0.5 for value in np.unique(squared)}
    squared, labels = guesses["test"]
    right = np.array([votes.get(value, True) for value in squared]) == labels
    assert right.mean() < chance_limit(data["pathfinder"].splits["test"])


def test_neither_pixels_nor_their_counts_reveal_the_label(data: dict[str, cache.Dataset]) -> None:
    train, test = (data["pathfinder"].splits[name] for name in ("train", "test"))
    rows = [split.tokens.reshape(-1, 100) for split in (train, test)]
    pixels = [np.concatenate([row == 128, row == 255], 1).astype(float) for row in rows]
    accuracy = logistic_accuracy(pixels[0], train.labels, pixels[1], test.labels)
    assert accuracy < chance_limit(test)


@pytest.mark.parametrize("name", TASKS)
def test_classes_are_balanced_and_no_example_occurs_twice(
    name: str, data: dict[str, cache.Dataset]
) -> None:
    splits = data[name].splits
    share = splits["train"].labels.mean()
    assert share == pytest.approx(0.5, abs=4 * math.sqrt(0.25 / 4_000))
    assert max(split.lengths.max() for split in splits.values()) <= 256
    texts = [text for split in splits.values() for text in sequences(split)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", TASKS)
def test_the_bytes_are_the_same_on_every_machine(name: str, data: dict[str, cache.Dataset]) -> None:
    assert data[name].fingerprint == FINGERPRINTS[name]


@pytest.mark.parametrize("name", STAND_INS)
def test_another_seed_gives_other_data_that_are_also_called_a_stand_in(
    name: str, tmp_path: Path
) -> None:
    sizes = {"num_train": 40, "num_validation": 10, "num_test": 10}
    prints = set()
    for seed in (0, 1):
        task = STAND_INS[name](**sizes, data_seed=seed)  # type: ignore[call-arg]
        data = cache.load(name, task, tmp_path)
        assert data.source.kind == "stand-in"
        prints.add(data.fingerprint)
    assert len(prints) == 2


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("key", ["num_train", "num_validation", "num_test"])
def test_a_split_without_examples_is_refused(name: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"task.options.{key}=0: must be at least 1"):
        STAND_INS[name](**{key: 0})


@pytest.mark.parametrize("size", [5, 17])
def test_a_size_out_of_range_is_named(size: int) -> None:
    with pytest.raises(ValueError, match=f"task.options.size={size}: must be 6 to 16"):
        PathfinderStandIn(size=size)
