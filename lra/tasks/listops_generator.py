"""ListOps expressions by the algorithm of Long Range Arena (arXiv 2011.04006, section 2.2).

Expressions are drawn in chunks, each with its own generator seeded from (seed, chunk), so that
chunks may be drawn in any order, by any number of processes, to the same bytes. Every random
decision comes from `random.Random.random()`, which is the same on every machine.
"""

import hashlib
import multiprocessing
import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat

# Token ids: padding is 0. The closing bracket is written X in the original pipeline.
DIGITS = range(1, 11)
MIN, MAX, MED, SM, CLOSE = range(11, 16)
SYMBOLS = {str(d): 1 + d for d in range(10)} | {
    "[MIN": MIN,
    "[MAX": MAX,
    "[MED": MED,
    "[SM": SM,
    "]": CLOSE,
}
NUM_IDS = 16
MAX_ARGUMENTS = 10

CHUNK = 500


@dataclass(frozen=True)
class Grammar:
    """The distribution of expressions.

    Args:
        min_length: Accepted expressions are strictly longer, in symbols without parentheses.
        max_length: Accepted expressions are strictly shorter.
        max_depth: Depth from which every node is a digit; the root has depth 1.
        operator_probability: Probability that a node above that depth is an operator.
        max_arguments: An operator has 2 to this many arguments, each number as likely.
    """

    min_length: int = 500
    max_length: int = 2_000
    max_depth: int = 10
    operator_probability: float = 0.25
    max_arguments: int = MAX_ARGUMENTS


def _draw(rng: random.Random, grammar: Grammar) -> bytes | None:
    """Draw one tree in prefix form; None when its length is outside the limits.

    One uniform number decides a node: below `operator_probability` it is an operator, and where
    it fell within that interval decides which and how many arguments; above, which digit.
    """
    uniform, probability = rng.random, grammar.operator_probability
    kinds = 4 / probability
    arities, digits = grammar.max_arguments - 1, 10 / (1 - probability)
    limit, max_depth = grammar.max_length, grammar.max_depth
    symbols = bytearray()
    # Arguments that are still to come, for every open operator.
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


def value(symbols: bytes) -> int:
    """Evaluate an expression of token ids: a digit 0 .. 9.

    MIN and MAX are what they say, MED is the integer part of the median, SM the sum modulo 10.
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


def generate(
    num_examples: int, grammar: Grammar | None = None, seed: int = 0, workers: int = 1
) -> Iterator[tuple[bytes, int]]:
    """Yield distinct expressions with their values.

    Args:
        num_examples: How many.
        grammar: Their distribution; by default Long Range Arena's.
        seed: Same seed and grammar, same expressions in the same order.
        workers: Processes; their number changes nothing but the time.

    Yields:
        `(symbols, value)`: token ids in prefix form without parentheses, and the digit.
    """
    grammar = grammar or Grammar()
    seen: set[bytes] = set()
    # Duplicates are left out, so a few more chunks than the examples fill may be drawn.
    indices = iter(range(2**63))
    pool = multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else nullcontext()
    with pool as processes:
        while True:
            batch = [next(indices) for _ in range(max(2 * workers, 1))]
            arguments = zip(repeat(grammar), repeat(seed), batch)
            chunks = (
                processes.starmap(_chunk, arguments)
                if processes is not None
                else (_chunk(*each) for each in arguments)
            )
            for symbols, label in (example for chunk in chunks for example in chunk):
                key = hashlib.sha256(symbols).digest()[:16]
                if key in seen:
                    continue
                seen.add(key)
                yield symbols, label
                if len(seen) == num_examples:
                    return
