"""Measure this code and that of another commit in turn, and report significant slowdowns.

    lra bench against COMMIT attention=softmax,mra length=1024,4096
    make bench-check BASE=COMMIT

The commit is checked out into a temporary folder. Each round runs `lra bench` with the same words
in one process per code; which code goes first alternates. The pairs of each round are compared by
Student's t test on the logarithms of their ratios, at 5 % over all cells together (Holm's method).
The exit status is 1 if a cell got slower, or is missing or fails in this code alone. Each code is
measured by its own bench: a bench that times differently, as the one before f88c4bb did, may show a
difference in what it times.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lra.bar import progress_bar
from lra.bench.request import of_lengths
from lra.config import ConfigError
from lra.markdown import markdown
from lra.paths import PACKAGES
from lra.report.significance import LEVEL, paired_t
from lra.terminal import command_parser

# Backend, length and mode; and the median seconds of each in one process.
Key = tuple[str, int, str]
Seconds = Mapping[Key, float]
# Measured by default.
WORDS = ("attention=softmax,fourier,mra,linear", "length=1024,2048")


@dataclass(frozen=True)
class Change:
    """How the time of a cell changed.

    Args:
        key: The cell.
        ratios: Time of this code over that of the other, one ratio per round.
        is_significant: Whether the change is more than noise.
    """

    key: Key
    ratios: tuple[float, ...]
    is_significant: bool

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def words(self) -> str:
        """The change as text."""
        if not self.is_significant:
            return "within noise"
        return "slower" if self.ratio > 1 else "faster"


def changes(rounds: Sequence[tuple[Seconds, Seconds]]) -> list[Change]:
    """Compare the cells that both codes measured in every round.

    Args:
        rounds: Seconds of this code and of the other, at least two rounds.
    """
    keys = [key for key in rounds[0][0] if all(key in each for pair in rounds for each in pair)]
    ratios = {key: tuple(here[key] / there[key] for here, there in rounds) for key in keys}
    # Holm, 1979: compare the smallest p with the level over all cells, the next with one cell less.
    chances = {key: paired_t([math.log(each) for each in ratios[key]]) for key in keys}
    significant: set[Key] = set()
    for rank, key in enumerate(sorted(keys, key=chances.__getitem__)):
        if chances[key] * (len(keys) - rank) > LEVEL:
            break
        significant.add(key)
    return [Change(key, ratios[key], key in significant) for key in keys]


def only_there(rounds: Sequence[tuple[Seconds, Seconds]]) -> list[Key]:
    """Return the cells that the other code measured in every round, and this code did not."""
    everywhere = [key for key in rounds[0][1] if all(key in there for _, there in rounds)]
    return [key for key in everywhere if not all(key in here for here, _ in rounds)]


def seconds_in(file: Path) -> dict[Key, float]:
    """Return the measurements of a bench, as this code or older code wrote them."""
    values = json.loads(file.read_text(encoding="utf-8"))
    if "rows" in values:
        # Written before inference was measured too.
        rows = values["rows"]
        return {(r["attention"], r["length"], "training"): r["seconds_per_step"] for r in rows}
    cells = [cell for cell in values["runs"][-1]["cells"] if not cell["failed"]]
    return {
        (cell["attention"], cell["length"], cell["mode"]): statistics.median(cell["seconds"])
        for cell in cells
    }


def run_bench(code: Path, words: Sequence[str], out: Path) -> dict[Key, float]:
    """Run the bench of some code in a process of its own.

    Args:
        code: Folder that contains `lra` and `models`.
        words: Words as `lra.bench.lengths` takes them.
        out: JSON file to write.

    Raises:
        ConfigError: The bench failed; the message has the end of its output.
    """
    command = [sys.executable, "-m", "lra.bench", *words, f"out={out}"]
    environment = os.environ | {"PYTHONPATH": str(code)}
    ran = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True)
    if ran.returncode:
        end = "\n".join(ran.stderr.strip().splitlines()[-3:])
        raise ConfigError(f"{code}: `lra bench` ended with {ran.returncode}:\n{end}")
    return seconds_in(out)


@contextmanager
def checked_out(commit: str, root: Path = PACKAGES) -> Iterator[Path]:
    """Provide a folder with the code of a commit while the block runs.

    Args:
        commit: Anything that git accepts as a commit.
        root: Top of the repository.

    Raises:
        ConfigError: The commit or the repository does not exist.
    """
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "code")
        added = _git(root, "worktree", "add", "--detach", str(folder), commit)
        if added.returncode:
            raise ConfigError(f"{commit}: {added.stderr.strip().splitlines()[-1]}")
        try:
            yield folder
        finally:
            _git(root, "worktree", "remove", "--force", str(folder))


def _git(root: Path, *words: str) -> subprocess.CompletedProcess[Any]:
    try:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"git is needed to compare commits: {error}") from error


def in_turn(
    here: Path, there: Path, words: Sequence[str], rounds: int
) -> list[tuple[Seconds, Seconds]]:
    """Measure two versions of the code, and return the seconds of both for every round.

    Args:
        here: Folder of this code.
        there: Folder of the other code.
        words: Words for the bench.
        rounds: Number of processes for each code, at least 2.
    """
    found: list[tuple[Seconds, Seconds]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar(total=2 * rounds, desc="bench", unit="process") as bar,
    ):
        for number in range(rounds):
            seconds: dict[Path, Seconds] = {}
            # Each goes first in turn, so that warm-up effects help both alike.
            for code in (here, there)[:: -1 if number % 2 else 1]:
                seconds[code] = run_bench(code, words, Path(folder, "bench.json"))
                bar.update()
            found.append((seconds[here], seconds[there]))
    return found


def table(found: Sequence[Change]) -> str:
    """Return the changes as Markdown."""
    rows = [["attention", "length", "mode", "time here / there", "lowest", "highest", "change"]]
    for change in found:
        name, length, mode = change.key
        ratios = (change.ratio, min(change.ratios), max(change.ratios))
        rows.append([name, f"{length:,}", mode, *(f"{each:.3f}" for each in ratios), change.words])
    return markdown(rows)


def main(words: Sequence[str]) -> None:
    """Compare this code with that of a commit, and exit with 1 if a cell is slower or lost.

    Raises:
        ConfigError: The commit does not exist, or a word is invalid.
    """
    parser = command_parser("bench against", __doc__)
    parser.add_argument("commit", help="the commit to compare with, such as main or 07376e5")
    parser.add_argument("words", nargs="*", help="key=value, as for lra bench")
    parser.add_argument(
        "--rounds", type=int, default=5, help="processes for each code; default %(default)s"
    )
    args = parser.parse_intermixed_args(list(words))
    if args.rounds < 2:
        parser.error(f"--rounds {args.rounds}: must be at least 2")
    asked = {word.partition("=")[0] for word in args.words}
    more = [word for word in WORDS if word.partition("=")[0] not in asked]
    bench_words = of_lengths([*more, *args.words])
    if not any(word.startswith("repeats=") for word in bench_words):
        bench_words.append("repeats=3")
    with checked_out(args.commit) as there:
        measured = in_turn(PACKAGES, there, bench_words, args.rounds)
    found, lost = changes(measured), only_there(measured)
    if not found and not lost:
        raise ConfigError(f"{args.commit}: the two versions have no cell in common")
    if found:
        print(table(found))
    slower = [change for change in found if change.words == "slower"]
    for change in slower:
        name, length, mode = change.key
        print(f"slower than {args.commit}: {name} at {length:,}, {mode}, {change.ratio:.2f} times")
    for name, length, mode in lost:
        print(f"missing or failed here, unlike {args.commit}: {name} at {length:,}, {mode}")
    if not slower and not lost:
        print(f"nothing is slower than {args.commit} beyond noise")
    sys.exit(bool(slower or lost))
