"""Say, before a grid starts, what it will take: hours per cell, memory, disk, what to leave out.

    lra plan task=listops,text attention=softmax,mra scale=mini threads=1

A few steps of each cell that is to be trained are measured; see `lra.plan.cost`. The measurements
are kept in `plan.json` in the runs folder, so that a plan and the grid after it measure only once.
The exit status is 2 for a wrong name or override, and 1 if the sweep would refuse a cell, and
therefore all of them.
"""

import logging
import sys

import torch

from lra import memory
from lra.config import ConfigError
from lra.plan import cost
from lra.plan.page import page
from lra.plan.sweep import plan
from lra.terminal import command_parser, refused, run


def main() -> None:
    """Measure and print the plan of a grid."""
    parser = command_parser("plan", __doc__)
    parser.add_argument(
        "--budget", type=float, default=cost.BUDGET, help="approximate seconds per cell"
    )
    parser.add_argument("words", nargs="*", help="key=value, as for lra train")
    args = parser.parse_intermixed_args()
    logging.basicConfig(format="%(message)s")
    # Before anything is measured: the memory that is in use without a model.
    memory.reset(torch.device("cpu"))
    base = memory.peak(torch.device("cpu"))
    with refused(ConfigError):
        cells = plan(args.words, args.budget)
    print(page(cells, base))
    if any(cell.state == "refused" for cell in cells):
        print("The sweep refuses to start because of the cells refused above.", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(main)
