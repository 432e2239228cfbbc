"""Open TensorBoard on the curves of cells, each by a name of at most thirty characters.

    lra board scale=mini
    lra board task=listops attention=softmax,mra --port 6007

The words choose as in `lra report`. TensorBoard calls a run by its folder, here `listops mra s0`,
or with a variant `listops mra s0 steps=100`; cells that begin while it is open appear in it.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from lra.compose import command, groups
from lra.config import ConfigError
from lra.record import RECORD, RecordError, read_record
from lra.report.selection import Selection, selections
from lra.terminal import run
from lra.variant import DEFAULT

LONGEST = 30
# Seconds between two looks for cells that have begun.
AGAIN = 20.0


def cells(asked: Selection) -> Iterator[Path]:
    """Yield the run folders with curves that words ask for, finished or not, sorted."""
    root = asked.runs_dir / asked.scale / asked.protocol
    for folder in sorted({file.parent for file in root.glob("*/*/*/seed*/events.out.tfevents.*")}):
        task, attention, variant, seed = folder.parts[-4:]
        told = (
            (asked.tasks, task),
            (asked.attentions, attention),
            ([f"seed{each}" for each in asked.seeds], seed),
            (asked.values.get("variant", ()), variant),
        )
        rest = asked.values.keys() - {"variant"}
        if all(not values or value in values for values, value in told) and (
            not rest or _recorded(asked, folder)
        ):
            yield folder


def _recorded(asked: Selection, folder: Path) -> bool:
    """Tell whether the record of a cell has what only a record tells."""
    try:
        return asked.has(read_record(folder / RECORD))
    except RecordError:
        return False


def names(folders: Iterable[Path]) -> dict[str, Path]:
    """Return run folders by names that tell them apart, of at most `LONGEST` characters."""
    found = list(folders)
    # Where all have the same scale and protocol, nobody needs to read it.
    places = {folder.parts[-6:-4] for folder in found}
    several = [len({place[index] for place in places}) > 1 for index in (0, 1)]
    named = {}
    for folder in found:
        *place, task, attention, variant, seed = folder.parts[-6:]
        words = [task, attention, seed.replace("seed", "s")]
        words += [] if variant == DEFAULT else [variant]
        words += [word for word, tells in zip(place, several, strict=True) if tells]
        named[_shortened(" ".join(words))] = folder
    return named


def _shortened(name: str) -> str:
    if len(name) <= LONGEST:
        return name
    # What is cut off still tells names apart.
    return f"{name[: LONGEST - 7]}~{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def link(board: Path, named: Mapping[str, Path]) -> None:
    """Let a folder hold the run folders by their names, those that it lacks.

    Args:
        board: The folder.
        named: Run folders by name.
    """
    for name, folder in named.items():
        if not os.path.lexists(board / name):
            (board / name).symlink_to(folder.resolve(), target_is_directory=True)


def main() -> None:
    """Run TensorBoard until it is ended."""
    parser = argparse.ArgumentParser(prog="lra board", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("words", nargs="*", help="key=value as of lra train; runs_dir=FOLDER")
    parser.add_argument("--port", default="6006", help="of this machine; 6006")
    parser.add_argument("--host", default="localhost", help="whom it answers; localhost")
    args = parser.parse_intermixed_args()
    try:
        asked = list(selections(command(args.words), groups(args.words)))
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    # Ended by a signal, it would leave the server behind.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        _serve(asked, ["--port", args.port, "--host", args.host])
    finally:
        signal.signal(signal.SIGTERM, before)


def _serve(asked: Sequence[Selection], words: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as board:

        def look() -> int:
            found = names(folder for each in asked for folder in cells(each))
            link(Path(board), found)
            return len(found)

        number = look()
        having = "1 cell has" if number == 1 else f"{number} cells have"
        print(f"{having} curves; Ctrl-C ends TensorBoard", flush=True)
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", board, *words]
        with subprocess.Popen(command) as server:
            try:
                while True:
                    try:
                        status = server.wait(AGAIN)
                        break
                    except subprocess.TimeoutExpired:
                        look()
            finally:
                server.terminate()
                # At Ctrl-C Popen would wait for a quarter of a second only.
                server.wait()
    sys.exit(status)


if __name__ == "__main__":
    run(main)
