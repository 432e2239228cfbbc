"""Time state-space layers against a softmax layer, and kernels of S4D against the table of powers.

    python scripts/bench_ssm.py [--out results/bench/ssm_cpu.json] [--threads 1] [--repeats 7]

Every layer runs forward and backward on one float32 sequence. The candidates take turns, and each
figure is the median of its turns after one warm-up turn, so read ratios rather than milliseconds.
`exponent` is the slope of log time over log length, for all lengths and for the last three. Memory
is that of all tensors alive at once. The script takes a minute.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lra.machine import code_version, interleaved, processor
from lra.memory import peak_of
from models.ema import EMA
from models.geometric_sums import geometric_sums, geometric_sums_reference
from models.heads import AttentionShape
from models.lru import LRU
from models.mega import Mega
from models.s4d import S4D
from models.s5 import S5
from models.softmax import Softmax

WIDTH, STATES, LENGTH = 64, 64, 4096
LENGTHS = (1024, 2048, 4096, 8192, 16_384)
# The last doublings, whose exponent is also given separately.
LAST = 3
PATHX_LENGTH, PATHX_WIDTH = 16_384, 256
CPU = torch.device("cpu")


class Nothing(nn.Module):
    """The identity, with which a moving average is timed alone."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return `x`."""
        return x


LAYERS: dict[str, Callable[[AttentionShape], nn.Module]] = {
    "softmax": Softmax,
    "s4d": partial(S4D, states=STATES),
    "s4d, causal": partial(S4D, states=STATES, bidirectional=False),
    "lru": partial(LRU, states=STATES),
    "lru, both directions": partial(LRU, states=STATES, bidirectional=True),
    "s5": partial(S5, states=2 * STATES),
    "ema alone": partial(EMA, inner=Nothing),
    "mega, chunks of 128": partial(Mega, chunk=128, truncation=1024),
}


def step(make: Callable[[AttentionShape], nn.Module], length: int, width: int = WIDTH) -> partial:
    """Return a function that runs a new layer forward and backward on one random sequence."""
    layer = make(AttentionShape(dim=width, heads=2, head_dim=width // 2, max_length=length))
    x = torch.randn(1, length, width, requires_grad=True)
    return partial(forward_backward, partial(layer, x, None))


def forward_backward(form: Callable[[], Tensor]) -> None:
    """Run forward, and backward from ones."""
    out = form()
    out.backward(torch.ones_like(out))


def shares(repeats: int) -> dict[str, float]:
    """Return the seconds that every layer takes at one length."""
    steps = {name: step(make, LENGTH) for name, make in LAYERS.items()}
    seconds = interleaved(steps, repeats, CPU)
    print(f"forward + backward, 1 x {LENGTH} x {WIDTH}, {STATES} states")
    for name, taken in seconds.items():
        print(f"  {name:22} {1e3 * taken:8.1f} ms {taken / seconds['softmax']:7.3f} of softmax")
    return seconds


def exponents(repeats: int) -> dict[str, dict[int, float]]:
    """Return the seconds that layers take at lengths that double."""
    found: dict[str, dict[int, float]] = {}
    for name in ("s4d", "lru", "ema alone"):
        steps = {str(length): step(LAYERS[name], length) for length in LENGTHS}
        seconds = interleaved(steps, repeats, CPU)
        found[name] = {int(length): taken for length, taken in seconds.items()}
        times = ", ".join(f"{1e3 * taken:.1f}" for taken in seconds.values())
        last = dict(list(found[name].items())[-LAST:])
        local = f"{slope(last):.2f} from {min(last):,} on"
        print(f"  {name:10} {times} ms, exponent {slope(found[name]):.2f}, {local}")
    return found


def slope(seconds: Mapping[int, float]) -> float:
    """Return the slope of log time over log length, by least squares."""
    x, y = (torch.tensor([math.log(v) for v in values]) for values in (seconds, seconds.values()))
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def kernels(repeats: int) -> dict[str, float]:
    """Return the seconds that S4D's kernel takes, with its gradient, in both forms."""
    log_z = torch.complex(-torch.rand(WIDTH, STATES // 2) / 50, torch.rand(WIDTH, STATES // 2))
    weights = torch.randn(2, WIDTH, STATES // 2, dtype=torch.cfloat)
    inputs = weights.requires_grad_(), log_z.requires_grad_(), LENGTH
    forms = {"in blocks": geometric_sums, "table of powers": geometric_sums_reference}
    steps = {
        name: partial(forward_backward, partial(form, *inputs)) for name, form in forms.items()
    }
    seconds = interleaved(steps, repeats, CPU)
    faster = seconds["table of powers"] / seconds["in blocks"]
    print(f"kernel of {WIDTH} x {STATES} x {LENGTH} in blocks: {faster:.1f} times as fast")
    return seconds


def memory_at_pathx() -> float:
    """Return the megabytes that a forward and backward of S4D adds at Path-X."""
    run = step(LAYERS["s4d"], PATHX_LENGTH, PATHX_WIDTH)
    run()
    megabytes = peak_of(run, CPU) / 1e6
    print(f"S4D at {PATHX_LENGTH} x {PATHX_WIDTH} x {STATES}: {megabytes:.0f} MB")
    return megabytes


def main() -> None:
    """Measure, print and, if asked, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    commit, dirty = code_version()
    figures = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": f"{processor()}, {arguments.threads} thread(s)",
        "torch": torch.__version__,
        "commit": commit,
        "dirty": dirty,
        "shares": shares(arguments.repeats),
        "lengths": exponents(arguments.repeats),
        "kernels": kernels(arguments.repeats),
        "pathx_megabytes": memory_at_pathx(),
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
