"""Measure training steps: backends at several lengths, or where the time of cells goes.

    lra bench 'attentions=[softmax,fourier]' 'lengths=[1024,2048]'
    lra bench step --tasks listops,text --attentions softmax,linear
    lra bench step --tasks listops --attentions softmax --against old

The first is explained in `lra.bench.lengths`, the others in `lra.bench.step`.
"""

import sys

from lra.bench import lengths, step


def main() -> None:
    """Run what the command line asks for."""
    if sys.argv[1:2] == ["step"]:
        step.main(sys.argv[2:])
    else:
        lengths.main()


if __name__ == "__main__":
    main()
