"""Open the curves of cells in TensorBoard, each under a name of at most thirty characters.

    lra board scale=mini
    lra board task=listops attention=softmax,mra --port 6007

The words select cells as in `lra report`. TensorBoard names a run after its folder, here
`listops mra s0`, or with a variant `listops mra s0 steps=100`; cells that start while it is open
appear in it.
"""

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
from lra.terminal import command_parser, refused, run
from lra.variant import DEFAULT

MAX_NAME = 30
# Seconds between two checks for cells that have started.
AGAIN = 20.0


def cells(asked: Selection) -> Iterator[Path]:
    """Yield the selected run folders that have curves, finished or not, sorted."""
    root = asked.runs_dir / asked.scale / asked.protocol
    for folder in sorted({file.parent for file in root.glob("*/*/*/seed*/events.out.tfevents.*")}):
        task, attention, variant, seed = folder.parts[-4:]
        conditions = (
            (asked.tasks, task),
            (asked.attentions, attention),
            ([f"seed{each}" for each in asked.seeds], seed),
            (asked.values.get("variant", ()), variant),
        )
        rest = asked.values.keys() - {"variant"}
        if all(not values or value in values for values, value in conditions) and (
            not rest or _recorded(asked, folder)
        ):
            yield folder


def _recorded(asked: Selection, folder: Path) -> bool:
    """Return whether a cell's record matches the words that only a record can answer."""
    try:
        return asked.has(read_record(folder / RECORD))
    except RecordError:
        return False


def names(folders: Iterable[Path]) -> dict[str, Path]:
    """Return run folders by distinct names of at most `MAX_NAME` characters."""
    found = list(folders)
    # If all share one scale or protocol, the names need not include it.
    places = {folder.parts[-6:-4] for folder in found}
    several = [len({place[index] for place in places}) > 1 for index in (0, 1)]
    named = {}
    for folder in found:
        *place, task, attention, variant, seed = folder.parts[-6:]
        words = [task, attention, seed.replace("seed", "s")]
        words += [] if variant == DEFAULT else [variant]
        words += [word for word, differs in zip(place, several, strict=True) if differs]
        named[_shortened(" ".join(words))] = folder
    return named


def _shortened(name: str) -> str:
    if len(name) <= MAX_NAME:
        return name
    # The hash keeps names distinct that differ only in the part that is cut off.
    return f"{name[: MAX_NAME - 7]}~{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def link(board: Path, named: Mapping[str, Path]) -> None:
    """Link run folders into a folder under their names, unless they are already there.

    Args:
        board: The folder.
        named: Run folders by name.
    """
    for name, folder in named.items():
        if not os.path.lexists(board / name):
            (board / name).symlink_to(folder.resolve(), target_is_directory=True)


def main() -> None:
    """Run TensorBoard until it is stopped."""
    parser = command_parser("board", __doc__)
    parser.add_argument("words", nargs="*", help="key=value, as for lra train; runs_dir=FOLDER")
    parser.add_argument("--port", default="6006", help="port on this machine; default 6006")
    parser.add_argument("--host", default="localhost", help="host to serve on; default localhost")
    args = parser.parse_intermixed_args()
    with refused(ConfigError):
        asked = list(selections(command(args.words), groups(args.words)))
    # Without a handler, a signal that ends this process would leave the server running.
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
        print(f"{having} curves; press Ctrl-C to stop TensorBoard", flush=True)
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
                # On Ctrl-C, Popen would wait only a quarter of a second.
                server.wait()
    sys.exit(status)


if __name__ == "__main__":
    run(main)
