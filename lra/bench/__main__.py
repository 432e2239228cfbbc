"""Measure speed and memory: backends at several lengths, or where the time of updates goes.

    lra bench attention=softmax,linear,my_file:Mine length=1024,4096
    lra bench attention=linformer attention.options.rank=64,128
    lra bench --report [FILE ...]
    lra bench against COMMIT attention=softmax,mra
    lra bench step task=listops,text attention=softmax,linear
    lra bench step task=listops attention=softmax --against old

Besides the words of a cell, the first two commands accept length=1024,2048 (any lengths that fit
into memory), batch_size=4, repeats=10, threads=0, device=auto, precision=float32, compile=false,
attention_dropout=0.0, and out=FILE to write a separate file.

The first two and their report are explained in `lra.bench.lengths`, `against` in
`lra.bench.against`, and `step` in `lra.bench.step`.
"""

import sys

from lra.terminal import refused, run


def main() -> None:
    """Run the measurement that the command line asks for."""
    # Imported only when run, since a report needs no torch.
    from lra.bench import request
    from lra.config import ConfigError

    words = sys.argv[1:]
    with refused(ConfigError):
        if words[:1] == ["step"]:
            from lra.bench import step

            step.main(words[1:])
        elif words[:1] == ["against"]:
            from lra.bench import against

            against.main(words[1:])
        elif "--report" in words:
            from lra.bench import again

            again.main([word for word in words if word != "--report"])
        else:
            sys.argv[1:] = bench_words = request.of_lengths(words)
            from lra.bench import lengths
            from lra.compose import check_composes

            check_composes("bench", [word for word in bench_words if not word.startswith("-")])
            lengths.main()


if __name__ == "__main__":
    run(main)
