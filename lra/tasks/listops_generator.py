"""Generate ListOps by Long Range Arena's algorithm (arXiv 2011.04006, section 2.2).

Expressions are drawn in chunks, each with its own generator seeded from (seed, chunk), so that any
number of processes may draw the chunks in any order and produce the same bytes. Every random
decision comes from `random.Random.random()`, which is the same on every machine.
"""

import functools
import hashlib
import multiprocessing
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from lra.tasks import DataError

# Token ids; padding is 0. The original pipeline writes the closing bracket as X.
DIGITS = range(1, 11)
MIN, MAX, MED, SM, CLOSE = range(11, 16)
SYMBOLS = {str(d): 1 + d for d in range(10)} | {
    "[MIN": MIN,
    "[MAX": MAX,
    "[MED": MED,
    "[SM": SM,
    "]": CLOSE,
}
MAX_ARGUMENTS = 10

CHUNK = 500
# Longer than any grammar here would seriously draw.
MAX_LENGTH = 100_000
# At least one draw in this many must have a requested length.
RAREST = 1_000_000
# From this length on, there are more expressions than anyone requests, if the grammar allows it.
MANY = 40


@dataclass(frozen=True)
class Grammar:
    """The distribution of expressions.

    Args:
        min_length: Accepted expressions are strictly longer, in symbols without parentheses.
        max_length: Accepted expressions are strictly shorter.
        max_depth: Depth from which on every node is a digit; the root has depth 1.
        operator_probability: Probability that a node above that depth is an operator.
        max_arguments: Operators have 2 to this many arguments, each number being equally likely.
    """

    min_length: int = 500
    max_length: int = 2_000
    max_depth: int = 10
    operator_probability: float = 0.25
    max_arguments: int = MAX_ARGUMENTS


def _draw(rng: random.Random, grammar: Grammar) -> bytes | None:
    """Draw one tree in prefix form; return None if its length is outside the limits.

    One uniform number decides a node: below `operator_probability` it is an operator, and the
    position within that interval decides which operator and how many arguments; above, it decides
    which digit.
    """
    uniform, probability = rng.random, grammar.operator_probability
    kinds = 4 / probability
    arities, digits = grammar.max_arguments - 1, 10 / (1 - probability)
    limit, max_depth = grammar.max_length, grammar.max_depth
    symbols = bytearray()
    # Number of arguments still to come, for every open operator.
    open_arguments: list[int] = []
    pending = 1
    while True:
        u = uniform()
        if len(open_arguments) + 1 >= max_depth:
            symbols.append(1 + int(u * 10))
        elif u > probability:
            symbols.append(1 + min(int((u - probability) * digits), 9))
        else:
            kind = min(int(u * kinds), 3)
            symbols.append(MIN + kind)
            open_arguments.append(pending)
            pending = 2 + min(int((u * kinds - kind) * arities), arities - 1)
            continue
        pending -= 1
        while not pending and open_arguments:
            symbols.append(CLOSE)
            pending = open_arguments.pop() - 1
        if not pending:
            return bytes(symbols) if grammar.min_length < len(symbols) < limit else None
        # Every open operator still owes an argument or its bracket.
        if len(symbols) + len(open_arguments) >= limit:
            return None


@functools.lru_cache
def check_feasible(grammar: Grammar, num_examples: int) -> None:
    """Reject a grammar with no or too few such expressions, or under one in a million draws.

    Raises:
        ValueError: The grammar is rejected.
    """
    low, high = grammar.min_length, grammar.max_length
    if high > MAX_LENGTH:
        raise ValueError(f"task.options.max_length={high}: must be at most {MAX_LENGTH:,}")
    lengths = f"task.options.min_length={low}, max_length={high}, max_depth={grammar.max_depth}"
    share = float(_shares(grammar)[low + 1 :].sum())
    if share * RAREST < 1:
        seldom = "fewer than one in a million" if share > 1e-12 else "none"
        raise ValueError(f"{lengths}: of the expressions drawn, {seldom} have such a length")
    number = _numbers(grammar)
    if min(high, _longest(grammar) + 1) <= MANY and number < num_examples:
        raise ValueError(f"{lengths}: there are {number:,} such expressions, not {num_examples:,}")


def _shares(grammar: Grammar) -> NDArray[np.float64]:
    """Return the probability of each length below `max_length` for a drawn tree."""
    limit, most = grammar.max_length, grammar.max_arguments
    size = 1 << (2 * limit - 1).bit_length()
    digit = np.zeros(limit)
    digit[1:2] = 1
    # From the deepest level up; lengths beyond the limit are cut off before they could wrap around.
    node = digit
    for _ in range(min(grammar.max_depth, limit) - 1):
        transformed = np.fft.rfft(node, size)
        power, total = node, np.zeros(limit)
        for _ in range(most - 1):
            power = np.fft.irfft(np.fft.rfft(power, size) * transformed, size)[:limit]
            total += power
        operator = np.zeros(limit)
        operator[2:] = total[:-2] / (most - 1)
        level = (1 - grammar.operator_probability) * digit + grammar.operator_probability * operator
        if np.array_equal(level, node):
            break
        node = level
    # Rounding leaves impossible lengths with less than this.
    return np.where(node > 1e-14, node, 0.0)


def _longest(grammar: Grammar) -> int:
    """Return the length of the longest expression that the depth allows, or at least `MANY`."""
    longest = 1
    for _ in range(grammar.max_depth - 1):
        longest = 2 + grammar.max_arguments * longest
        if longest >= MANY:
            break
    return longest


def _numbers(grammar: Grammar) -> int:
    """Return how many different expressions have a requested length below `MANY`."""
    limit = min(grammar.max_length, MANY)
    digit = [10 * (length == 1) for length in range(limit)]
    node = digit
    for _ in range(min(grammar.max_depth, limit) - 1):
        power, total = node, [0] * limit
        for _ in range(grammar.max_arguments - 1):
            power = [sum(power[i] * node[n - i] for i in range(n + 1)) for n in range(limit)]
            total = [a + b for a, b in zip(total, power, strict=True)]
        node = [d + 4 * t for d, t in zip(digit, [0, 0, *total], strict=False)]
    return sum(node[grammar.min_length + 1 :])


def is_expression(symbols: bytes) -> bool:
    """Return whether token ids form exactly one complete expression."""
    # Number of arguments so far, outside of all operators and in every open one.
    counts = [0]
    for symbol in symbols:
        if MIN <= symbol < CLOSE:
            counts.append(0)
            continue
        if symbol == CLOSE and (len(counts) == 1 or not counts.pop()):
            return False
        counts[-1] += 1
    return counts == [1]


def value(symbols: bytes) -> int:
    """Evaluate an expression of token ids to a digit 0 .. 9.

    MIN and MAX are minimum and maximum, MED is the integer part of the median, and SM is the sum
    modulo 10.
    """
    stack: list[list[int]] = [[]]
    operators: list[int] = []
    for symbol in symbols:
        if symbol < MIN:
            stack[-1].append(symbol - 1)
        elif symbol < CLOSE:
            operators.append(symbol)
            stack.append([])
        else:
            arguments, operator = stack.pop(), operators.pop()
            if operator == MIN:
                result = min(arguments)
            elif operator == MAX:
                result = max(arguments)
            elif operator == SM:
                result = sum(arguments) % 10
            else:
                arguments.sort()
                middle = len(arguments) // 2
                # The integer part of the mean of the two middle values, or the middle value.
                result = (arguments[middle] + arguments[~middle]) // 2
            stack[-1].append(result)
    return stack[0][0]


def _chunk(grammar: Grammar, seed: int, index: int) -> list[tuple[bytes, int]]:
    digest = hashlib.sha256(f"listops/{seed}/{index}".encode()).digest()
    rng = random.Random(int.from_bytes(digest[:16], "big"))
    examples: list[tuple[bytes, int]] = []
    while len(examples) < CHUNK:
        symbols = _draw(rng, grammar)
        if symbols is not None:
            examples.append((symbols, value(symbols)))
    return examples


Examples = list[tuple[bytes, int]]


def _unless_killed(chunks: Iterator[Examples]) -> Iterator[Examples]:
    try:
        yield from chunks
    except BrokenProcessPool as error:
        raise DataError(
            "a process that generated ListOps was killed, perhaps because memory ran out; start"
            " again with more memory or on fewer cores. (If your own script calls this, it needs an"
            " `if __name__ == '__main__':` around the call, because Python's processes import it"
            " again.)"
        ) from error


def _end_with_parent() -> None:
    """Make a generating process end with its parent, however the parent ends."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def generate(
    num_examples: int, grammar: Grammar | None = None, seed: int = 0, workers: int = 1
) -> Iterator[tuple[bytes, int]]:
    """Yield distinct expressions with their values.

    Args:
        num_examples: Number of expressions.
        grammar: Their distribution; by default that of Long Range Arena.
        seed: Seed; the same seed and grammar give the same expressions in the same order.
        workers: Number of processes, which changes nothing but the time.

    Yields:
        `(symbols, value)`: token ids in prefix form without parentheses, and the digit.

    Raises:
        ValueError: There are no such expressions, or too few.
        DataError: A generating process was killed.
    """
    grammar = grammar or Grammar()
    seen: set[bytes] = set()
    # Duplicates are left out, so a few more chunks may be drawn than the examples fill.
    indices = iter(range(2**63))
    check_feasible(grammar, num_examples)
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, _end_with_parent) if workers > 1 else nullcontext()
    with pool as processes:
        while True:
            batch = [next(indices) for _ in range(max(2 * workers, 1))]
            arguments = (repeat(grammar), repeat(seed), batch)
            chunks: Iterator[Examples] = map(_chunk, *arguments)
            if processes is not None:
                chunks = _unless_killed(processes.map(_chunk, *arguments))
            for symbols, label in (example for chunk in chunks for example in chunk):
                key = hashlib.sha256(symbols).digest()[:16]
                if key in seen:
                    continue
                seen.add(key)
                yield symbols, label
                if len(seen) == num_examples:
                    return
