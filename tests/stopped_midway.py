"""Train a cell as `lra.train` does; one process of several hears a signal in a validation.

torchrun --nproc_per_node=2 tests/stopped_midway.py WORDS
"""

import os
import signal
from typing import Any

import lra.evaluation
import lra.loop
from lra.train import main

# The one in which it is heard, and the batch of this process after which nothing is computed.
VALIDATION = 2
_answer, _count_correct = lra.evaluation._answer, lra.loop.count_correct
_made = [0]


def _counting(*arguments: Any) -> int:
    _made[0] += 1
    return _count_correct(*arguments)


def _interrupting(*arguments: Any) -> Any:
    if os.environ["RANK"] == "1" and _made[0] == VALIDATION:
        os.kill(os.getpid(), signal.SIGTERM)
    return _answer(*arguments)


lra.loop.count_correct, lra.evaluation._answer = _counting, _interrupting

if __name__ == "__main__":
    main()
