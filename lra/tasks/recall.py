"""Recall: find the value of a key that was seen earlier, at a known distance.

This is associative recall (arXiv 2312.04927, section 3) as a classification, like every other task.
Pairs of a key and a value are scattered in filler; the last token is one of the keys, and the label
is the value of that key. The *distance* from the last token back to its pair is uniform on a
logarithmic scale from `MIN_DISTANCE` to the length, so accuracy can be reported by distance: how
far does a backend look? Long Range Arena has no such task; several of its own are largely solved
locally (arXiv 2501.14850).

A pair is one symbol (`joined`), or a key followed by a value (`adjacent`). In the latter form,
symbol frequencies reveal nothing about the label, and a model must first bind key and value, for
which two layers of softmax need many times as many updates.

Distances are divided into as many strata as there are pairs, equal on the logarithmic scale. Each
stratum holds one pair, and each pair is asked for equally often, so the positions of pairs reveal
nothing. Outside the training set, every value occurs equally often and every key at most once, so a
linear classifier of counts can do no better than guess, whichever form the pairs have. A share of
the training set is easier, because a model learns too little at first from one pair among a
thousand tokens of filler.

Symbols, before `id_shift`: K keys; then V values, or K V pairs, those of the first key first; then
filler. Axes: n examples, N length, P pairs.
"""

import functools
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lra.tasks import Source, Split, Writer, check_counts
from lra.tasks.stand_ins import below, uniform

# Minimum number of tokens from the last one back to the key of its pair.
MIN_DISTANCE = 4
MAX_LENGTH = 65_536
# Number of examples drawn at once.
CHUNK = 500
# Symbols are stored in a byte, and 0 is padding.
MAX_SYMBOLS = 255
# One decoy per this many tokens, so that no two are adjacent.
DECOY_EVERY = 4

PAIRS = Literal["joined", "adjacent"]
FILLER = Literal["random", "near_miss"]
Symbols = NDArray[np.uint8]
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Draws:
    """Random numbers for a chunk of examples, with a stream per name.

    Args:
        key: Key of the chunk.
        count: Number of its examples.
    """

    key: str
    count: int

    def uniform(self, name: str, width: int) -> NDArray[np.float64]:
        """Return `(n, width)` numbers in [0, 1)."""
        return uniform(f"{self.key}/{name}", self.count, width)

    def below(self, bound: int, name: str, width: int) -> Numbers:
        """Return `(n, width)` whole numbers below `bound`."""
        return below(bound, f"{self.key}/{name}", self.count, width).astype(np.int64)

    def order(self, name: str, width: int) -> Numbers:
        """Return `(n, width)`: in each row, a random permutation of 0 to `width` - 1."""
        return self.uniform(name, width).argsort(1, kind="stable")


@functools.cache
def stratum(length: int, strata: int, place: int, odd: bool) -> tuple[Numbers, NDArray[np.float64]]:
    """Return the odd or the even distances of a stratum, and the cumulative share up to each.

    A pair takes two tokens, so pairs at distances of one parity never overlap. The shares are exact
    and correctly rounded, so that the same numbers are drawn on every machine.

    Args:
        length: Tokens per sequence; distances are below it.
        strata: Number of strata.
        place: Index of the stratum, from 0.
        odd: Whether to return the odd distances.
    """
    # For a distance d: (d / least)^strata runs from (length / least)^place on.
    bounds = (length**each * MIN_DISTANCE ** (strata - each) for each in (place, place + 1))
    low, high = (bisect_left(range(length), each, key=lambda d: d**strata) for each in bounds)
    inside = [distance for distance in range(low, high) if distance % 2 == odd]
    weights = np.cumsum([(Decimal(d + 1) / d).ln() for d in inside])
    shares = [float(each / weights[-1]) for each in weights]
    return np.array(inside, np.int64), np.array(shares)


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Options of the task.

    Args:
        length: Tokens per sequence.
        pairs: `joined` for one symbol per key and value, or `adjacent` for a key, then a value.
        num_pairs: Pairs in a sequence, a multiple of `num_values`.
        num_keys: Number of different keys, at least `num_pairs`.
        num_values: Number of different values, which are the classes.
        num_filler: Number of different filler symbols.
        filler: `random`, or `near_miss`, in which every fourth symbol is a decoy: a key without a
            value or, if pairs are adjacent, a value without a key.
        easy: Share of training examples that have from one pair to all pairs, with arbitrary
            values, and repeat them: in all places, or half of them, and so on down to one.
        num_train: Training examples.
        num_validation: Validation examples.
        num_test: Test examples.
        data_seed: Seed of the generator.
    """

    version: ClassVar[int] = 1
    id_shift: ClassVar[int] = 1
    group: ClassVar[str] = "distance, in tokens"

    length: int = 1024
    pairs: PAIRS = "joined"
    num_pairs: int = 4
    num_keys: int = 4
    num_values: int = 4
    num_filler: int = 8
    filler: FILLER = "random"
    easy: float = 0.5
    num_train: int = 100_000
    num_validation: int = 2_000
    num_test: int = 10_000
    data_seed: int = 0

    def __post_init__(self) -> None:
        check_counts(self, ("num_train", "num_validation", "num_test"))
        for key, least in {"num_pairs": 2, "num_values": 2, "num_filler": 1, "length": 8}.items():
            if (value := getattr(self, key)) < least:
                raise ValueError(f"task.options.{key}={value}: must be at least {least}")
        if self.length > MAX_LENGTH:
            raise ValueError(f"task.options.length={self.length}: must be at most {MAX_LENGTH:,}")
        if not 0 <= self.easy <= 1:
            raise ValueError(f"task.options.easy={self.easy}: must be a share, 0 to 1")
        for key, known in {"pairs": PAIRS, "filler": FILLER}.items():
            if (choice := getattr(self, key)) not in get_args(known):
                listed = " or ".join(get_args(known))
                raise ValueError(f"task.options.{key}={choice}: must be {listed}")
        if (symbols := self._first_filler + self.num_filler) > MAX_SYMBOLS:
            raise ValueError(
                f"task.options.num_keys={self.num_keys}: with num_values={self.num_values} and"
                f" num_filler={self.num_filler} that is {symbols} symbols if pairs are"
                f" {self.pairs}, must be at most {MAX_SYMBOLS}"
            )
        self._check_pairs()

    def _check_pairs(self) -> None:
        pairs = f"task.options.num_pairs={self.num_pairs}"
        if self.num_pairs % self.num_values:
            reason = f"a multiple of num_values={self.num_values}, so that counts reveal nothing"
            raise ValueError(f"{pairs}: must be {reason}")
        if self.num_pairs > self.num_keys:
            reason = f"at most num_keys={self.num_keys}, as every key has one value"
            raise ValueError(f"{pairs}: must be {reason}")
        # With a pair per two tokens, which never fits, the strata are not even computed.
        if 2 * self.num_pairs > self.length or not all(
            len(stratum(self.length, self.num_pairs, place, odd)[0])
            for place in range(self.num_pairs)
            for odd in (False, True)
        ):
            raise ValueError(
                f"{pairs}: must be fewer, as a sequence of length={self.length} has no room for one"
                " at every distance"
            )

    @property
    def _first_filler(self) -> int:
        """The first symbol of filler."""
        return self.num_keys + self.num_values * (self.num_keys if self.pairs == "joined" else 1)

    @property
    def sizes(self) -> dict[str, int]:
        """Number of examples of each split."""
        return {
            "train": self.num_train,
            "validation": self.num_validation,
            "test": self.num_test,
        }

    def locate(self, data_dir: Path | None) -> Source:
        """Return a generated source, since the examples are drawn and nothing is read."""
        return Source("generated", f"generated with seed {self.data_seed}")

    def write(self, source: Source, splits: Mapping[str, Writer]) -> None:
        """Write every split; see `lra.tasks.Task`."""
        for name, count in self.sizes.items():
            for symbols, labels in self.examples(name, count):
                for sequence, label in zip(symbols, labels.tolist(), strict=True):
                    splits[name].add(label, sequence)

    def examples(self, split: str, count: int) -> Iterator[tuple[Symbols, Numbers]]:
        """Draw the examples of a split in chunks: `(n, N)` symbols with `(n,)` labels."""
        for start in range(0, count, CHUNK):
            number = min(CHUNK, count - start)
            key = f"recall/{self.data_seed}/{split}/{start}"
            yield self._chunk(Draws(key, number), split)

    def groups(self, split: Split) -> Numbers:
        """Return the distance of each example, `(num_examples,)`, in tokens.

        Args:
            split: A split made by this task, with any seed.
        """
        symbols = split.tokens.reshape(len(split), self.length)
        before, last = symbols[:, :-1], symbols[:, -1:]
        if self.pairs == "joined":
            # Symbols that are not pairs belong to no key.
            keys = np.full(MAX_SYMBOLS + 1, MAX_SYMBOLS, np.uint8)
            pairs = np.arange(self.num_keys * self.num_values)
            keys[self.num_keys + pairs] = pairs // self.num_values
            asked = keys[before] == last
        else:
            after = symbols[:, 1:]
            asked = (before == last) & (after >= self.num_keys) & (after < self._first_filler)
        # The last occurrence, since easy examples have several.
        found: Numbers = asked[:, ::-1].argmax(1)
        return found + 1

    def _chunk(self, draws: Draws, split: str) -> tuple[Symbols, Numbers]:
        symbols = self._filler(draws)
        keys = draws.order("keys", self.num_keys)[:, : self.num_pairs]  # (n, P)
        # Every value equally often, in random order.
        values = draws.order("values", self.num_pairs) % self.num_values
        asked = draws.below(self.num_pairs, "asked", 1)  # (n, 1)
        odd = draws.below(2, "odd", 1)[:, 0]
        there = np.ones_like(values, dtype=bool)
        if split == "train":
            values, there = self._ease(draws, symbols, keys, values, asked, odd)
        rows, pairs = there.nonzero()
        distances = self._distances(draws, odd)[rows, pairs]
        self._put(symbols, rows, distances, keys[rows, pairs], values[rows, pairs])
        symbols[:, -1:] = np.take_along_axis(keys, asked, 1)
        return symbols, np.take_along_axis(values, asked, 1)[:, 0]

    def _ease(
        self,
        draws: Draws,
        symbols: Symbols,
        keys: Numbers,
        values: Numbers,
        asked: Numbers,
        odd: Numbers,
    ) -> tuple[Numbers, NDArray[np.bool_]]:
        """Make a share of examples easy (see `easy`) and write the symbols of their repetitions.

        Returns:
            The values `(n, P)`, and a mask of the pairs that exist.
        """
        easy = draws.uniform("easy", 1) < self.easy  # (n, 1)
        free = draws.below(self.num_values, "free", self.num_pairs)
        values = np.where(easy, free, values)
        # Of the other pairs, keep those that come before the queried one, which stays.
        order = draws.order("stay", self.num_pairs)
        last = np.take_along_axis(order, asked, 1)
        # From a whole sequence of repetitions, by halves, down to one.
        cells = self.length // 2 - 1
        share = np.ldexp(1.0, -draws.below(cells.bit_length(), "density", 1))
        rows, cell = (easy & (draws.uniform("repeat", cells) < share)).nonzero()
        rank = (draws.uniform("which", cells) * (last + 1)).astype(np.int64)[rows, cell]
        pair = order.argsort(1)[rows, rank]
        self._put(symbols, rows, 2 * cell + 2 + odd[rows], keys[rows, pair], values[rows, pair])
        return values, ~easy | (order <= last)

    def _put(
        self, symbols: Symbols, rows: Numbers, distances: Numbers, keys: Numbers, values: Numbers
    ) -> None:
        """Write pairs into the symbols, each into its row and at its distance."""
        places = self.length - 1 - distances
        if self.pairs == "joined":
            symbols[rows, places] = self.num_keys + keys * self.num_values + values
        else:
            symbols[rows, places] = keys
            symbols[rows, places + 1] = self.num_keys + values

    def _filler(self, draws: Draws) -> Symbols:
        filler = self._first_filler + draws.below(self.num_filler, "filler", self.length)
        if self.filler == "near_miss":
            kinds = self.num_keys + self.num_values * (self.pairs == "adjacent")
            number = filler[:, ::DECOY_EVERY].shape[1]
            filler[:, ::DECOY_EVERY] = draws.below(kinds, "decoys", number)
        return filler.astype(np.uint8)

    def _distances(self, draws: Draws, odd: Numbers) -> Numbers:
        """Return the distance of every pair, `(n, P)`, nearest first, with one parity per row."""
        shares = draws.uniform("distances", self.num_pairs)
        found = np.empty(shares.shape, np.int64)
        for place in range(self.num_pairs):
            for parity in (0, 1):
                distances, upto = stratum(self.length, self.num_pairs, place, bool(parity))
                rows = odd == parity
                found[rows, place] = distances[upto.searchsorted(shares[rows, place], "right")]
        return found
