"""Run preflight, plan, train and report for a grid, each as a command of its own.

    lra reproduce scale=mini attention=softmax,mra
    lra reproduce task=listops,text seed=0,1,2 data_dir=/path/to/raw/data --plan

At a scale with real data, nothing is trained until the data of every task are there, unless
`--missing skip` leaves tasks out; `--plan` stops after the plan. The exit status is that of the
part that failed. Without words, the grid is the whole suite at the paper scale.
"""

import signal
import subprocess
import sys
from types import FrameType

from lra.compose import command, groups
from lra.config import ConfigError
from lra.terminal import command_parser, refused, run
from lra.words import GRID, choices, key_of, with_defaults

DEFAULTS = (*GRID, "seed=0", "scale=paper", "protocol=nystromformer")


def part(name: str, *words: str, quiet: bool = False) -> tuple[int, str]:
    """Run a part; return its exit status and, if it is quiet, what it wrote to stdout.

    A SIGTERM that arrives in the meantime is passed on to the part.
    """
    arguments = [sys.executable, "-m", f"lra.{name}", *words]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE if quiet else None, text=True)

    def passed_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, passed_on)
    try:
        out, _ = process.communicate()
    finally:
        signal.signal(signal.SIGTERM, before)
    code = process.returncode
    return (128 - code if code < 0 else code), out or ""


def reproduce(words: list[str], missing: str = "stop", only_plan: bool = False) -> int:
    """Run the parts of a grid in turn; return the exit status.

    Args:
        words: Complete words.
        missing: What to do if the data of a task are missing: `stop`, or `skip` the task.
        only_plan: Whether to stop after the plan.

    Raises:
        ConfigError: A word is invalid.
    """
    asked = words
    # At the mini scale, the suite makes all data itself.
    if choices(words, groups(words)).get("scale") != ["mini"]:
        status, tasks = part("preflight", *words, "--missing", missing, quiet=True)
        if status and not only_plan:
            return status
        if not status:
            words = [*(word for word in words if key_of(word) != "task"), f"task={tasks.strip()}"]
    status, _ = part("plan", *words)
    if status or only_plan:
        return status
    trained, _ = part("train", *words, "--multirun")
    # Tasks that were asked for but left out show up as missing.
    reported, _ = part("report", *asked)
    return trained or reported


def main() -> None:
    """Reproduce the grid that the command line names."""
    parser = command_parser("reproduce", __doc__)
    parser.add_argument("words", nargs="*", help="key=value, as for lra train")
    parser.add_argument("--plan", action="store_true", help="stop after the plan")
    parser.add_argument(
        "--missing",
        choices=("stop", "skip"),
        default="stop",
        help="what to do if data are missing (%(default)s)",
    )
    args = parser.parse_intermixed_args()
    with refused(ConfigError):
        words = with_defaults(command(args.words), DEFAULTS)
        sys.exit(reproduce(words, args.missing, args.plan))


if __name__ == "__main__":
    run(main)
