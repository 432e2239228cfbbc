"""Measure how well simple rules answer a task's test set: models have to be better than these.

    python scripts/baselines.py task=text scale=small data_dir=/path/to/raw/data
    python scripts/baselines.py task=listops scale=small --runs RUN [RUN ...]

Counts: a logistic regression on how often each symbol occurs in a sequence; for pairs, on the
difference and the overlap of both counts. ListOps also has beginnings: the label that training
expressions with the same first symbols have most often, where the first symbol is the outermost
operator. With `--runs`, the script also prints how often the stored test answers of finished
ListOps cells are those that follow from the first symbol, and McNemar's exact test of the
difference. Pathfinder and Path-X also have the distance between the marked ends: ends count as
joined if they are nearer than the limit that divides the training images best.
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import lra
from lra.examples import Examples
from lra.predictions import read_predictions
from lra.record import RECORD, read_record
from lra.report.significance import mcnemar, p_in_words

BEGINNINGS = (1, 2, 3)
# Weight decay of the logistic regression, on counts of mean 0 and standard deviation 1.
DECAY = 1e-3


def counts(examples: Examples, symbols: int) -> Tensor:
    """Return float64 features of each example, `(B, symbols)`, or `(B, 2 symbols)` for pairs."""
    rows = []
    for tokens, _ in examples:
        sequences = tokens if isinstance(tokens, tuple) else (tokens,)
        first, *other = (np.bincount(each, minlength=symbols) for each in sequences)
        features = [abs(first - other[0]), np.minimum(first, other[0])] if other else [first]
        rows.append(np.concatenate(features))
    return torch.tensor(np.array(rows), dtype=torch.float64)


def by_counts(train: Examples, test: Examples, symbols: int, classes: int) -> NDArray[np.int64]:
    """Return the answers to `test` of a logistic regression on counts, fitted to `train`."""
    x, rows = counts(train, symbols), counts(test, symbols)
    labels = torch.tensor([label for _, label in train])
    varied = x.std(0) > 0
    mean, deviation = x[:, varied].mean(0), x[:, varied].std(0)
    x, rows = ((each[:, varied] - mean) / deviation for each in (x, rows))
    weight = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        error = torch.nn.functional.cross_entropy(x @ weight + bias, labels)
        total = error + DECAY * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return (rows @ weight + bias).argmax(1).numpy()


def by_beginning(train: Examples, test: Examples, length: int) -> NDArray[np.int64]:
    """Return the label that the first `length` symbols of each test sequence make most likely.

    A beginning that no training sequence has is answered with the most frequent label of all.
    """

    def beginning(tokens: object) -> tuple[int, ...]:
        return tuple(np.asarray(tokens)[:length].tolist())

    seen: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for tokens, label in train:
        seen[beginning(tokens)][label] += 1
    likely = {start: labels.most_common(1)[0][0] for start, labels in seen.items()}
    [(fallback, _)] = sum(seen.values(), Counter()).most_common(1)
    return np.array([likely.get(beginning(tokens), fallback) for tokens, _ in test])


def apart(examples: Examples, side: int) -> NDArray[np.float64]:
    """Return the distance, in pixels, between the ends in each image of `side` x `side` pixels.

    Nothing is as bright as the two disks that mark the ends: the deviation of their pixels from the
    middle between them is nearly half the distance.
    """
    found = []
    for tokens, _ in examples:
        image = np.asarray(tokens)
        places = np.stack(np.divmod(np.flatnonzero(image == image.max()), side))
        found.append(2 * np.sqrt(places.var(1).sum()))
    return np.array(found)


def by_distance(train: Examples, test: Examples, side: int) -> NDArray[np.int64]:
    """Return 1 for test images whose ends are nearer than the limit that divides `train` best."""
    far = apart(train, side)
    order = np.argsort(far)
    joined = np.array([label for _, label in train])[order]
    # The number of right answers if the first k are called joined, for every k.
    right = np.concatenate([[0], joined.cumsum()]) + np.concatenate(
        [(1 - joined)[::-1].cumsum()[::-1], [0]]
    )
    # Images with equal distances are on one side.
    cuts = np.append(np.flatnonzero(np.diff(far[order], prepend=-1.0)), len(order))
    limits = np.append(far[order], np.inf)
    return (apart(test, side) < limits[cuts[right[cuts].argmax()]]).astype(np.int64)


def main() -> None:
    """Print accuracies on the test set, and the agreement of runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="+", help="as for lra train")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="run folders")
    args = parser.parse_args()
    config = lra.load(*args.words)
    if args.runs and config.task.name != "listops":
        parser.error(f"--runs with task={config.task.name}: only works with task=listops")
    splits = lra.dataset(config)
    train, test = splits["train"], splits["test"]
    labels = np.array([label for _, label in test])
    symbols, classes = config.task.num_symbols, config.task.num_classes
    answers = {"counts": by_counts(train, test, symbols, classes)}
    if config.task.name == "listops":
        answers |= {f"first {k}": by_beginning(train, test, k) for k in BEGINNINGS}
    if config.task.name in ("pathfinder", "pathx"):
        answers["distance of ends"] = by_distance(train, test, config.task.options["size"])
    for name, answered in answers.items():
        print(f"{config.task.name}, {name}: {(answered == labels).mean():.2%} of {len(labels):,}")
    for run in args.runs:
        record = read_record(run / RECORD)
        stored = read_predictions(run, record.test_correct, record.test_total)
        if stored is None or not np.array_equal(stored.labels, labels):
            sys.exit(
                f"{run}: has no test answers for these data; give the words it was trained with"
            )
        share = (stored.predicted == answers["first 1"]).mean()
        rule = answers["first 1"] == labels
        alone = int((stored.right & ~rule).sum()), int((rule & ~stored.right).sum())
        print(
            f"{run}: {share:.1%} of its answers are those of the first symbol; {alone[0]} are right"
            f" only here, {alone[1]} only by that rule; McNemar's exact"
            f" {p_in_words(mcnemar(*alone))}"
        )


if __name__ == "__main__":
    main()
