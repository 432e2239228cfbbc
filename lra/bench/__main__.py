"""Measure training steps: backends at several lengths, or where the time of cells goes.

    lra bench attention=softmax,linear,my_file:Mine lengths=[1024,4096]
    lra bench attention=linformer attention.options.rank=64,128
    lra bench step task=listops,text attention=softmax,linear
    lra bench step task=listops attention=softmax --against old

The first is explained in `lra.bench.lengths`, the others in `lra.bench.step`.
"""

import sys

from lra.bench import lengths, request, step
from lra.config import ConfigError
from lra.terminal import run


def main() -> None:
    """Run what the command line asks for."""
    words = sys.argv[1:]
    try:
        if words[:1] == ["step"]:
            step.main(request.of_step(words[1:]))
            return
        sys.argv[1:] = request.of_lengths(words)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    lengths.main()


if __name__ == "__main__":
    run(main)
