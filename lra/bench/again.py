"""Remake the tables and pictures of a bench from its records, without measuring or torch.

lra bench --report [FILE ...]
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lra.bench import page
from lra.bench.measured import is_one, read
from lra.config import ConfigError
from lra.paths import results_dir
from lra.record import RecordError


def main(words: Sequence[str]) -> None:
    """Write and print the newest run of every machine, or of the given files.

    Args:
        words: Names of JSON files.

    Raises:
        ConfigError: There are no records of a bench.
    """
    files = [Path(word) for word in words] or of_machines(Path(results_dir(), "bench"))
    if not files:
        raise ConfigError(
            f"{Path(results_dir(), 'bench')}: no records of a bench; `lra bench` writes them"
        )
    wrong = 0
    for file in files:
        try:
            document = read(file)
        except RecordError as error:
            wrong += 1
            print(error, file=sys.stderr)
            continue
        print(page.write(file, document.machine, document.runs[-1]))
    if wrong:
        sys.exit(2)


def of_machines(folder: Path) -> list[Path]:
    """Return the files of machines in a folder, which other benches use too."""
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if is_one(values):
            found.append(file)
    return found
