"""Train a cell as `lra.train` does; one of several processes gets a signal in a validation.

torchrun --nproc_per_node=2 tests/stopped_midway.py WORDS
"""

import os
import signal
from typing import Any

import lra.evaluation
from lra.loop import Run
from lra.train import main

# The one in which the signal arrives, at the first batch of that process.
VALIDATION = 2
_answer, _validate = lra.evaluation._answer, Run._validate
_validations = [0]


def _counting(*arguments: Any) -> None:
    _validations[0] += 1
    _validate(*arguments)


def _interrupting(*arguments: Any) -> Any:
    if os.environ["RANK"] == "1" and _validations[0] == VALIDATION:
        os.kill(os.getpid(), signal.SIGTERM)
    return _answer(*arguments)


lra.evaluation._answer = _interrupting
Run._validate = _counting  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
