"""Make and check a submission, `results/submissions/<name>.json`.

    lra submission make FILE FOLDER ... --link https://github.com/me/mine --commit 1a2b3c4
    lra submission check FILE

The first command puts the records of run folders into one file and checks it. Every record must be
one that `lra train` wrote, for a backend that is not the suite's own, on data whose fingerprint is
known, over the whole test set with its majority class. It must be in no other submission, and have
at most a tenth more parameters than softmax has in its place (Long Range Arena's rule for
comparisons of equal size). Each problem is printed on a line of its own, and any problem makes the
exit status 1; docs/submissions.md has an example.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from lra.build import build_model, num_parameters
from lra.compose import load
from lra.config import ConfigError
from lra.folders import writing
from lra.record import RECORD, Record, read_records
from lra.report.submissions import (
    Submission,
    SubmissionError,
    problems,
    read_submission,
    read_submissions,
)
from lra.terminal import command_parser, run
from lra.words import printable

# "within at best 10% larger in terms of parameters compared to the base Transformer model": README
# of google-research/long-range-arena, for its fixed setting.
MAX_PARAMETERS = 1.1


def oversized(submission: Submission) -> Iterator[str]:
    """Yield a line for each backend that has too many parameters to be compared with softmax."""
    cells = {(r.scale, r.protocol, r.task, r.method): r for r in submission.records}
    for record in cells.values():
        most = MAX_PARAMETERS * (base := parameters_of_softmax(record))
        if record.parameters > most:
            yield (
                f"{'/'.join(record.place[:3])}: parameters={record.parameters:,} must be at most"
                f" {most:,.0f}, a tenth more than softmax has here ({base:,})"
            )


def parameters_of_softmax(record: Record) -> int:
    """Return the parameter count of softmax by the recipe of a record's task, protocol and scale.

    Raises:
        ConfigError: There is no such recipe.
    """
    words = (f"task={record.task}", f"protocol={record.protocol}", f"scale={record.scale}")
    # Only the number of values is needed, not the values.
    with torch.device("meta"):
        return num_parameters(build_model(load(*words, "attention=softmax")))


def make(file: Path, folders: Sequence[Path], link: str, commit: str) -> None:
    """Write the records below run folders as a submission.

    Args:
        file: The submission; its stem is its name.
        folders: Folders that hold run folders, or are one.
        link: Where the code of the backend is.
        commit: Commit of that code.

    Raises:
        SubmissionError: There is no record.
    """
    records = [asdict(record) for folder in folders for record in read_records(folder)]
    if not records:
        there = ", ".join(map(str, folders)) or "no folder"
        raise SubmissionError(f"{file}: no record in {there}; name folders that hold {RECORD}")
    values = {"name": file.stem, "link": link, "commit": commit, "records": records}
    with writing("FILE", file.parent, f"writing {file.name}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _put_back(file: Path, before: bytes | None) -> None:
    """Restore the old content of a file that was refused, or remove it if there was none."""
    if before is None:
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(before)


def main() -> None:
    """Make or check the file that the command line names."""
    parser = command_parser("submission", __doc__)
    parser.add_argument("action", choices=["check", "make"], help="what to do")
    parser.add_argument("file", type=Path, help="the submission")
    parser.add_argument("folders", type=Path, nargs="*", help="run folders, for make")
    parser.add_argument("--link", default="", help="https:// address of the backend's code")
    parser.add_argument("--commit", default="", help="commit of that code, 7 to 40 hex digits")
    args = parser.parse_intermixed_args()
    before = args.file.read_bytes() if args.file.is_file() else None
    submission, found = None, []
    try:
        if args.action == "make":
            make(args.file, args.folders, args.link, args.commit)
        submission = read_submission(args.file)
        found = problems(submission, read_submissions(args.file.parent))
        # For a record that follows none of the recipes here, there is nothing to compare.
        found = found or list(oversized(submission))
    except (SubmissionError, ConfigError) as error:
        print(error, file=sys.stderr)
    for line in found:
        print(printable(f"{args.file}: {line}"), file=sys.stderr)
    if submission is None or found:
        if args.action == "make":
            _put_back(args.file, before)
        sys.exit(1)
    methods = sorted({str(record.method) for record in submission.records})
    count = len(submission.records)
    summary = f"{count} record{'s' if count > 1 else ''} of {', '.join(methods)}"
    print(f"{args.file}: {summary}, no problem found")


if __name__ == "__main__":
    run(main)
