"""Say how well ListOps is answered by who reads only the first symbols of an expression.

    python scripts/listops_beginning.py scale=small
    python scripts/listops_beginning.py scale=small --runs RUN [RUN ...]
    python scripts/listops_beginning.py scale=paper

The answer is the label that training expressions of the same beginning have most often; the first
symbol is the outermost operator. With `--runs`, also how often the stored test answers of finished
cells are the one that follows from the first symbol. Nothing is trained.
"""

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import lra
from lra.examples import Examples
from lra.predictions import read_predictions
from lra.record import RECORD, read_record

LENGTHS = (1, 2, 3)


def beginning(tokens: object, length: int) -> tuple[int, ...]:
    """Return the first `length` symbols."""
    return tuple(np.asarray(tokens)[:length].tolist())


def answers(train: Examples, test: Examples, length: int) -> NDArray[np.int64]:
    """Return what the first `length` symbols of each test expression make most likely.

    A beginning that no training expression has is answered by the most frequent label of all.
    """
    seen: defaultdict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for tokens, label in train:
        seen[beginning(tokens, length)][label] += 1
    overall = sum(seen.values(), Counter())
    likely = {start: labels.most_common(1)[0][0] for start, labels in seen.items()}
    [(fallback, _)] = overall.most_common(1)
    return np.array([likely.get(beginning(tokens, length), fallback) for tokens, _ in test])


def main() -> None:
    """Print accuracies on the test set, and the agreement of runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", help="as of lra train, task=listops being there")
    parser.add_argument("--runs", nargs="*", type=Path, default=[], help="run folders")
    args = parser.parse_args()
    splits = lra.dataset(lra.load("task=listops", *args.words))
    labels = np.array([label for _, label in splits["test"]])
    found = {k: answers(splits["train"], splits["test"], k) for k in LENGTHS}
    for length, answered in found.items():
        share = (answered == labels).mean()
        print(f"first {length} of an expression: {share:.2%} of {len(labels):,} right")
    for run in args.runs:
        record = read_record(run / RECORD)
        stored = read_predictions(run, record.test_correct, record.test_total)
        if stored is None or not np.array_equal(stored.labels, labels):
            sys.exit(f"{run}: has no test answers of these data; train it with the same words")
        share = (stored.predicted == found[1]).mean()
        print(f"{run}: {share:.1%} of its answers are those of the first symbol")


if __name__ == "__main__":
    main()
