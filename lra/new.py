"""Write a skeleton for a backend of your own, and its test.

    lra new attention my_file:Mine

This writes two files into the current folder: `my_file.py`, with a backend that runs, and
`test_my_file.py`, which checks it against the contract. Existing files are never overwritten.
"""

import keyword
import sys
from importlib.util import find_spec
from pathlib import Path

from lra.config import is_path
from lra.terminal import command_parser, refused, run

BACKEND = '''"""{name}: what it does, and where it comes from."""

from torch import Tensor, nn

from models.heads import AttentionShape


class {name}(nn.Module):
    """Give every position the mean of the real ones, as a starting point."""

    pad_invariant = True  # more padding changes nothing
    memory_growth = 1  # memory grows with the length, not its square
    thread_safe = True  # forward stores nothing on self

    def __init__(self, shape: AttentionShape, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.value = nn.Linear(shape.dim, shape.dim, bias=shape.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        real = x.new_ones(x.shape[:2], dtype=bool) if mask is None else mask  # (B, N)
        # Masked values, even NaN, must not reach the result.
        value = self.value(x.masked_fill(~real[..., None], 0)).masked_fill(~real[..., None], 0)
        mean = value.sum(1, keepdim=True) / real.sum(1)[:, None, None].clamp(min=1)
        return self.scale * mean.expand_as(x)
'''
TEST = '''"""{name} keeps the contract of every backend; `lra check {path}` lists its checks."""

import subprocess
import sys
from pathlib import Path


def test_{module}_keeps_the_contract() -> None:
    command = [sys.executable, "-m", "lra.check", "{path}", "--fast"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stdout + done.stderr
'''


def write(path: str, folder: Path) -> list[Path]:
    """Write a backend and its test.

    Args:
        path: Module and class, such as `my_file:Mine`.
        folder: Folder to write into.

    Returns:
        The files.

    Raises:
        ValueError: The path is invalid, a file already exists, or Python already has a module of
            that name.
    """
    module, _, name = path.partition(":")
    if not is_path(path):
        raise ValueError(f"{path}: must be module:Class, such as my_file:Mine")
    if keyword.iskeyword(name) or keyword.iskeyword(module):
        raise ValueError(f"{path}: a keyword of Python cannot be a name")
    if "." in module:
        raise ValueError(f"{path}: the module must be a name without dots, such as my_file:Mine")
    texts = {folder / f"{module}.py": BACKEND, folder / f"test_{module}.py": TEST}
    for file in texts:
        if file.exists():
            raise ValueError(f"{file} already exists; nothing was written")
    taken = module in sys.stdlib_module_names or module in sys.modules
    if taken or ((known := find_spec(module)) is not None and known.origin is not None):
        raise ValueError(f"{path}: {module} is the name of an existing module; choose another")
    for file, text in texts.items():
        filled = text.replace("{name}", name).replace("{path}", path).replace("{module}", module)
        file.write_text(filled, encoding="utf-8")
    return list(texts)


def main() -> None:
    """Write what the command line asks for."""
    parser = command_parser("new", __doc__)
    parser.add_argument("kind", choices=("attention",), help="what to write")
    parser.add_argument("path", help="module:Class, such as my_file:Mine")
    args = parser.parse_args()
    with refused(ValueError):
        files = write(args.path, Path())
    print(f"Wrote {', '.join(map(str, files))}. Next:")
    print(f"  lra check {args.path}")
    print(f"  lra train scale=mini attention=softmax,{args.path}")


if __name__ == "__main__":
    run(main)
