"""Say what a grid will take before it starts: hours by cell, memory, disk, what to leave out.

    python -m lra.plan --tasks listops,text --attentions softmax,mra --scale mini -- threads=1

A few steps of each cell that is to be trained are measured; see `lra.plan.cost`. What was
measured is kept in `plan.json` of the runs folder, so that a plan and the grid after it measure
once. The exit status is 2 for a wrong name or override, and 1 where the sweep would refuse a cell,
and so all.
"""

import argparse
import logging
import sys

import torch

from lra import memory
from lra.config import ConfigError
from lra.paths import CONFIGS
from lra.plan import cost
from lra.plan.page import page
from lra.plan.sweep import plan


def main() -> None:
    """Measure and print the plan of a grid."""
    parser = argparse.ArgumentParser(prog="python -m lra.plan", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", required=True, help="names, separated by commas")
    parser.add_argument("--attentions", required=True, help="names, separated by commas")
    parser.add_argument("--seeds", default="0", help="numbers, separated by commas")
    parser.add_argument("--scale", default="paper", help="paper (default) or mini")
    parser.add_argument("--protocol", default="nystromformer", help="whose recipes; %(default)s")
    parser.add_argument("--budget", type=float, default=cost.BUDGET, help="seconds per cell, about")
    parser.add_argument("overrides", nargs="*", help="key=value of lra.train; use after --")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    for group in ("task", "attention", "scale", "protocol"):
        known = sorted(file.stem for file in (CONFIGS / group).glob("*.yaml"))
        for name in getattr(args, group if group in vars(args) else f"{group}s").split(","):
            if name not in known:
                own = group in ("task", "attention") and ":" in name
                hint = f"; for one of yours: --{group}s custom -- {group}.path={name}" * own
                parser.error(f"{group} {name}: must be one of {', '.join(known)}{hint}")
    words = [f"task={args.tasks}", f"attention={args.attentions}", f"seed={args.seeds}"]
    words += [f"scale={args.scale}", f"protocol={args.protocol}"]
    words += [word for word in args.overrides if not word.startswith("-")]
    # Before anything is measured: what is there without a model.
    memory.reset(torch.device("cpu"))
    base = memory.peak(torch.device("cpu"))
    try:
        cells = plan(words, args.budget)
    except ConfigError as error:
        parser.error(str(error))
    print(page(cells, base))
    if any(cell.state == "refused" for cell in cells):
        print("The sweep refuses to start with these cells: leave them out.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
