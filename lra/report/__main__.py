"""Make tables and pictures from records, as a pure function of the files in the runs folder.

    lra report scale=mini
    lra report task=listops attention=softmax,mra seed=0,1,2

Words filter the records: for each key that records have, only those with one of the given values
are kept, and cells that were asked for but do not exist are shown as missing. The command writes
accuracy, throughput and accuracy by length as Markdown, CSV and LaTeX, pictures of them as SVG and
PNG, and `index.html`, a page with all of it, to `results/<scale>/<protocol>/` beside the runs, and
prints the tables. A report replaces the one that is there; give that of a part its own `--out-dir`.
Measured and published figures are never mixed: published ones follow below, beside ours with the
difference and their source, and only at the paper scale.
"""

import logging
import sys
from pathlib import Path

from lra.compose import command, groups
from lra.config import ConfigError
from lra.folders import FolderError, writing
from lra.paths import submissions_dir
from lra.record import RECORD
from lra.report.pages import write_report
from lra.report.selection import selections
from lra.report.submissions import read_submissions
from lra.terminal import command_parser, refused, run


def main() -> None:
    """Write and print the report that the command line asks for."""
    parser = command_parser("report", __doc__)
    parser.add_argument("words", nargs="*", help="key=value, as for lra train; runs_dir=FOLDER")
    parser.add_argument(
        "--out-dir", type=Path, help="folder of the tables; by default beside the runs"
    )
    parser.add_argument(
        "--full", action="store_true", help="print the pages as they are written to files"
    )
    args = parser.parse_intermixed_args()
    logging.basicConfig(format="%(message)s")
    with refused(ConfigError):
        asked = list(selections(command(args.words), groups(args.words)))
    with refused(FolderError):
        for each in asked:
            there = each.runs_dir / each.scale / each.protocol
            if not (args.out_dir or _has_some(there)):
                # Empty tables would replace the existing ones.
                print(f"no record in {there}; `lra train` writes them", file=sys.stderr)
                sys.exit(1)
            out_dir = args.out_dir or beside_runs(each.runs_dir)
            with writing("--out-dir", out_dir, "writing tables"):
                page = write_report(
                    each.runs_dir,
                    out_dir,
                    each.scale,
                    each.protocol,
                    each.tasks,
                    each.attentions,
                    each.seeds,
                    only=each,
                    full=args.full,
                    submissions=read_submissions(submissions_dir()),
                )
            print(page)


def _has_some(folder: Path) -> bool:
    """Return whether there is anything to show: runs in a folder, or submissions by others."""
    return any(folder.glob(f"**/{RECORD}")) or any(submissions_dir().glob("*.json"))


def beside_runs(runs_dir: Path) -> Path:
    """Return the default folder of the tables: beside a folder named `runs`, else inside it."""
    return runs_dir.parent if runs_dir.name == "runs" else runs_dir


if __name__ == "__main__":
    run(main)
