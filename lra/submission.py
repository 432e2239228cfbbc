"""Check results that are to be submitted: `results/submissions/<name>.json`, as others see them.

    lra submission check results/submissions/my_backend.json

Every record must be one that `lra train` wrote, of a backend that is not the suite's own, on data
whose fingerprint is known, over the whole test set with its majority class, be in no other
submission, and have at most a tenth more parameters than softmax has in its place (Long Range
Arena's rule for comparisons of equal size). What is wrong is printed, a line each, and ends the
command with 1; docs/submissions.md says how to make the file.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from lra.build import build_model, num_parameters
from lra.compose import load
from lra.config import ConfigError
from lra.markdown import printable
from lra.record import Record
from lra.report.submissions import (
    Submission,
    SubmissionError,
    problems,
    read_submission,
    read_submissions,
)
from lra.terminal import run

# "within at best 10% larger in terms of parameters compared to the base Transformer model": README
# of google-research/long-range-arena, for its fixed setting.
MOST_PARAMETERS = 1.1


def oversized(submission: Submission) -> Iterator[str]:
    """Yield a line for each backend that has more parameters than may be compared with softmax."""
    cells = {(r.scale, r.protocol, r.task, r.method): r for r in submission.records}
    for record in cells.values():
        most = MOST_PARAMETERS * (base := parameters_of_softmax(record))
        if record.parameters > most:
            yield (
                f"{'/'.join(record.place[:3])}: parameters={record.parameters:,} must be at most"
                f" {most:,.0f}, a tenth more than softmax has here ({base:,})"
            )


def parameters_of_softmax(record: Record) -> int:
    """Return the parameters of softmax by the recipe of a record's task, protocol and scale.

    Raises:
        ConfigError: There is no such recipe.
    """
    words = (f"task={record.task}", f"protocol={record.protocol}", f"scale={record.scale}")
    # No value is needed, only their number.
    with torch.device("meta"):
        return num_parameters(build_model(load(*words, "attention=softmax")))


def main() -> None:
    """Check the file that the command line names."""
    parser = argparse.ArgumentParser(prog="lra submission", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=["check"], help="what is done with it")
    parser.add_argument("file", type=Path, help="the submission")
    args = parser.parse_args()
    try:
        submission = read_submission(args.file)
        found = problems(submission, read_submissions(args.file.parent))
        # Of a record that is none of the recipes here there is nothing to compare.
        found = found or list(oversized(submission))
    except (SubmissionError, ConfigError) as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    for line in found:
        print(printable(f"{args.file}: {line}"), file=sys.stderr)
    if found:
        sys.exit(1)
    methods = sorted({str(record.method) for record in submission.records})
    count = len(submission.records)
    said = f"{count} record{'s' if count > 1 else ''} of {', '.join(methods)}"
    print(f"{args.file}: {said} can be shown")


if __name__ == "__main__":
    run(main)
