"""What compiled kernels share: the random bits, and what numba keeps on disk."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import pytest

from models import compiled, dropout_kernel, softmax_kernel

ROOT = Path(__file__).resolve().parents[1]


@numba.njit
def bits(columns: np.ndarray, first: np.uint32, second: np.uint32) -> np.ndarray:
    hashed = np.empty_like(columns)
    for i in range(len(columns)):
        hashed[i] = compiled.random_bits(columns[i], first, second)
    return hashed


def test_random_bits_without_keys_are_triple32() -> None:
    # The published code, in Python's integers.
    def triple32(x: int) -> int:
        x = ((x ^ (x >> 17)) * 0xED5AD4BB) % 2**32
        x = ((x ^ (x >> 11)) * 0xAC4C1B51) % 2**32
        x = ((x ^ (x >> 15)) * 0x31848BAB) % 2**32
        return x ^ (x >> 14)

    columns = np.array([0, 1, 2, 12345, 2**31, 2**32 - 1], np.uint32)
    hashed = bits(columns, np.uint32(0), np.uint32(0))
    assert hashed.tolist() == [triple32(int(x)) for x in columns]


def test_row_keys_are_the_numbers_of_splitmix64() -> None:
    # The first numbers from the seed 1234567, as published with several implementations.
    want = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [int(compiled.row_key(1234567, row)) for row in range(3)] == want


@pytest.mark.parametrize("flipped", [0, 5, 17, 31])
def test_flipping_a_bit_of_a_column_or_key_flips_every_bit_half_the_time(flipped: int) -> None:
    columns = np.arange(100_000, dtype=np.uint32)
    keys = np.uint32(0x12345678), np.uint32(0x9ABCDEF0)
    bit = np.uint32(1 << flipped)
    before = bits(columns, *keys)
    changes = [bits(columns ^ bit, *keys), bits(columns, keys[0] ^ bit, keys[1])]
    # The second key comes later, so its bits affect fewer; but rows differ in half of them.
    changes.append(bits(columns, keys[0], ~keys[1] ^ bit ^ np.uint32(0x5A5A5A5A)))
    for after in changes:
        changed = np.unpackbits((before ^ after).view(np.uint8)).reshape(-1, 32).mean(0)
        assert np.abs(changed - 0.5).max() < 0.02


def test_editing_the_code_that_kernels_share_invalidates_the_cache_on_disk(tmp_path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "__init__.py").touch()
    shutil.copy(ROOT / "models" / "compiled.py", models)
    (models / "probe_kernel.py").write_text(
        "import numpy as np\n"
        "from models.compiled import compiled, random_bits\n"
        "@compiled\n"
        "def probe(x):\n"
        "    return random_bits(np.uint32(x), np.uint32(0), np.uint32(0))\n"
        "print(probe(7), len(probe.stats.cache_hits))\n"
    )

    def run() -> list[str]:
        command = [sys.executable, "-c", "import models.probe_kernel"]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.split()

    fresh, kept = run(), run()
    assert fresh[0] == kept[0]
    assert (fresh[1], kept[1]) == ("0", "1")
    file = models / "compiled.py"
    file.write_text(file.read_text().replace("0x31848BAB", "0x31848BAD"))
    # Python's own cache compares whole seconds, and all of this may take less than one.
    os.utime(file, (time.time() + 10,) * 2)
    edited = run()
    assert edited[0] != fresh[0]
    assert edited[1] == "0"


def test_shapes_that_do_not_fit_are_refused_before_anything_is_written() -> None:
    out = np.zeros(8, np.float32)
    with pytest.raises(AssertionError):
        dropout_kernel.drop_rows(np.ones(9, np.float32), 0, 0, 1.0, 2**20, out)
    assert not out.any()
    blocks = [np.ones((64, 16), np.float32) for _ in range(3)]
    rest = (0, 0, 0, np.float32(1), np.float32(1))
    wrong = [
        (*blocks, np.ones(63, bool), *rest, np.zeros((64, 16), np.float32), 64),
        (*blocks, np.ones(64, bool), *rest, np.zeros((64, 32), np.float32), 64),
        (*blocks, np.ones(64, bool), *rest, np.zeros((64, 16), np.float32), 63),
    ]
    for *arguments, result, length in wrong:
        with pytest.raises(AssertionError):
            softmax_kernel.attend(*arguments, result, np.zeros(length, np.float32))
        assert not result.any()


def test_the_softmax_kernel_writes_to_nothing_but_its_results() -> None:
    edge, around = 64, {}

    def guarded(name: str, *shape: int) -> np.ndarray:
        around[name] = np.full(np.prod(shape) + 2 * edge, 7, np.float32)
        return around[name][edge:-edge].reshape(shape)

    generator = np.random.default_rng(0)
    q, grad = (generator.standard_normal((128, 16)).astype(np.float32) for _ in range(2))
    k, v = (generator.standard_normal((192, 16)).astype(np.float32) for _ in range(2))
    real = generator.random(192) > 0.3
    inputs = [x.copy() for x in (q, k, v, grad)]
    out, lse = guarded("out", 128, 16), guarded("lse", 128)
    grads = [guarded(f"grad {i}", len(x), 16) for i, x in enumerate((q, k, v))]
    common = (q, k, v, real, 5, 0, 2**30, np.float32(4 / 3), np.float32(0.25))
    softmax_kernel.attend(*common, out, lse)
    softmax_kernel.differentiate(*common, out, lse, grad, *grads)
    for name, array in around.items():
        assert (array[:edge] == 7).all() and (array[-edge:] == 7).all(), name
        assert (array[edge:-edge] != 7).all(), name
    for x, before in zip((q, k, v, grad), inputs, strict=True):
        assert (x == before).all()
