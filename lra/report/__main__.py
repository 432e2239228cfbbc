"""Tables and a figure from records: a pure function of the files under the runs folder.

    python -m lra.report --scale mini --protocol nystromformer

Writes accuracy and throughput tables as Markdown and CSV, and a figure of both, to
`results/<scale>/<protocol>/`, and prints the tables. Measured and published figures are never
mixed: published ones come below, with their source, and only at the paper scale.
"""

import argparse
import logging
from pathlib import Path

from lra.paths import CONFIGS, results_dir, runs_dir
from lra.report.pages import write_report


def main() -> None:
    """Write and print the report that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m lra.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--scale", default="paper", help="scale of the runs (paper)")
    parser.add_argument("--protocol", default="nystromformer", help="protocol (nystromformer)")
    parser.add_argument("--tasks", default="", help="tasks that get a column, trained or not")
    parser.add_argument("--attentions", default="", help="backends that get a row, trained or not")
    parser.add_argument("--seeds", default="", help="seeds that every cell should have")
    parser.add_argument("--runs-dir", type=Path, default=Path(runs_dir()))
    parser.add_argument("--out-dir", type=Path, default=Path(results_dir()))
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    for group in ("scale", "protocol"):
        known = sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))
        if (name := getattr(args, group)) not in known:
            parser.error(f"--{group} {name}: must be one of {', '.join(known)}")
    seeds = [int(seed) for seed in args.seeds.split(",") if seed]
    tasks, attentions = (text.split(",") if text else [] for text in (args.tasks, args.attentions))
    folders = (args.runs_dir, args.out_dir)
    print(write_report(*folders, args.scale, args.protocol, tasks, attentions, seeds))


if __name__ == "__main__":
    main()
