"""ListOps: labels recomputed by an independent evaluator, statistics of the published generator."""

import hashlib
import math
import os
import random
import re
import signal
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lra.cores import available_cores
from lra.tasks import DataError, cache, listops, listops_generator
from lra.tasks.listops import ListOps, read_tsv
from lra.tasks.listops_generator import CLOSE, MIN, Grammar, generate, value

NAMES = {11: "min", 12: "max", 13: "med", 14: "sm", 15: ")"}


def med(*arguments: int) -> int:
    return int(statistics.median(arguments))


def sm(*arguments: int) -> int:
    return sum(arguments) % 10


def evaluate(symbols: bytes) -> int:
    """Evaluate by writing the expression as Python and letting Python parse it."""
    words = [f"{s - 1}," if s <= 10 else f"{NAMES[s]}(" if s < CLOSE else ")," for s in symbols]
    scope = {"min": min, "max": max, "med": med, "sm": sm}
    return int(eval("".join(words), scope)[0])


@pytest.fixture(scope="module")
def examples() -> list[tuple[bytes, int]]:
    return list(generate(1_500, seed=7))


def test_labels_equal_an_independent_evaluation(examples: list[tuple[bytes, int]]) -> None:
    assert all(evaluate(symbols) == label for symbols, label in examples)


def test_small_expressions_have_the_values_computed_by_hand() -> None:
    # [MED 1 4 [MAX 2 9 ] 3 ] has median 3.5, whose integer part counts.
    assert value(bytes([13, 2, 5, 12, 3, 10, 15, 4, 15])) == 3
    # [SM 7 8 9 ] is 24, modulo 10.
    assert value(bytes([14, 8, 9, 10, 15])) == 4
    assert value(bytes([11, 6, 3, 15])) == 2


def test_lengths_lie_strictly_between_the_limits(examples: list[tuple[bytes, int]]) -> None:
    lengths = [len(symbols) for symbols, _ in examples]
    assert min(lengths) > 500 and max(lengths) < 2_000
    grammar = Grammar(min_length=10, max_length=20, max_depth=3)
    short = {len(symbols) for symbols, _ in generate(3_000, grammar)}
    assert (min(short), max(short)) == (11, 19)


def test_expressions_are_distinct(examples: list[tuple[bytes, int]]) -> None:
    tiny = Grammar(min_length=3, max_length=5, max_depth=2)
    # [OP a b ] for four operators and a hundred pairs of digits: there are no more than 400.
    symbols = [s for s, _ in generate(400, tiny)]
    assert len(set(symbols)) == 400
    assert len({s for s, _ in examples}) == len(examples)


def test_length_statistics_match_the_published_generator(
    examples: list[tuple[bytes, int]],
) -> None:
    lengths = np.array([len(symbols) for symbols, _ in examples])
    # From 10,000 expressions of a literal implementation of the published algorithm.
    assert lengths.mean() == pytest.approx(1035.3, abs=4 * 395 / math.sqrt(len(lengths)))
    for percent, expected in {5: 539, 25: 701, 50: 950, 75: 1310, 95: 1808}.items():
        below = (lengths <= expected).mean()
        error = math.sqrt(percent * (100 - percent)) / 100 / math.sqrt(len(lengths))
        assert below == pytest.approx(percent / 100, abs=4.5 * error)


def test_label_and_symbol_statistics_match_the_published_generator(
    examples: list[tuple[bytes, int]],
) -> None:
    labels = np.bincount([label for _, label in examples], minlength=10) / len(examples)
    assert labels[[0, 9]] == pytest.approx([0.169, 0.167], abs=4.5 * 0.0097)
    assert labels[1:9] == pytest.approx(np.full(8, 0.085), abs=0.03)
    counts = np.bincount(np.frombuffer(b"".join(s for s, _ in examples), np.uint8), minlength=16)
    shares = counts / counts.sum()
    assert shares[1:11] == pytest.approx(np.full(10, 0.072), abs=0.002)
    assert shares[11:15] == pytest.approx(np.full(4, 0.0355), abs=0.002)
    assert shares[15] == pytest.approx(0.142, abs=0.003)


def test_nearly_every_expression_reaches_operator_depth_nine(
    examples: list[tuple[bytes, int]],
) -> None:
    def depth(symbols: bytes) -> int:
        now = deepest = 0
        for symbol in symbols:
            now += (MIN <= symbol < CLOSE) - (symbol == CLOSE)
            deepest = max(deepest, now)
        return deepest

    depths = [depth(symbols) for symbols, _ in examples]
    assert max(depths) == 9
    assert np.mean(np.array(depths) == 9) > 0.95


def test_the_bytes_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for symbols, label in generate(700, seed=0):
        digest.update(symbols + bytes([label]))
    assert digest.hexdigest() == "c175b759161f875af53abd3d96b7704240c4f9882775ace03dcfa4333eac9c9c"


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing() -> None:
    assert list(generate(1_200, workers=2)) == list(generate(1_200))


def write(file: Path, rows: list[str]) -> Path:
    file.write_text("Source\tTarget\n" + "\n".join(rows) + "\n")
    return file


def test_published_rows_lose_their_parentheses_and_keep_their_brackets(tmp_path: Path) -> None:
    file = write(tmp_path / "x.tsv", ["( ( ( [MED 1 ) ( ( [SM 2 ) 9 ) ] ) ] )\t1"])
    assert list(read_tsv(file)) == [(2, bytes([13, 2, 14, 3, 10, 15, 15]), 1, "")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("( [MIN 1 ) ]", "1 columns, should be 2"),
        ("( [MIN 1 ) ]\t1\t2", "3 columns, should be 2"),
        ("( [FIRST 1 ) ]\t1", "'[FIRST' is not a ListOps symbol"),
        ("( [MIN 1 ) ]\tx", "label 'x' should be a digit 0 to 9"),
        ("( [MIN 1 ) ]\t\u0663", "label '\ufffd\ufffd' should be a digit 0 to 9"),
        ("\t3", "the expression is empty"),
        ("", "1 columns, should be 2"),
        ("[MIN 1 2\t1", "the brackets do not match"),
        ("[MIN 1 2 ] ]\t1", "the brackets do not match"),
        ("[MIN ]\t1", "the brackets do not match"),
        ("1 2\t1", "the brackets do not match"),
    ],
)
def test_a_bad_row_is_named_by_line_or_left_out_and_counted(
    tmp_path: Path, row: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "basic_val.tsv", ["( [MIN 1 ) ]\t1", row, "7\t7"])
    assert [(r.line, r.fault) for r in read_tsv(file) if r.fault] == [(3, message)]
    for name in ("train", "test"):
        write(tmp_path / f"basic_{name}.tsv", ["3\t3"] * 3)
    monkeypatch.setattr(ListOps, "sizes", {"train": 3, "validation": 3, "test": 3})
    reason = re.escape(f"basic_val.tsv, line 3: {message}; task.options.on_bad_row=skip leaves")
    with pytest.raises(DataError, match=reason):
        cache.load("listops", ListOps(), tmp_path / "cache", tmp_path)
    data = cache.load("listops", ListOps(on_bad_row="skip"), tmp_path / "cache", tmp_path)
    assert data.num_skipped == {"train": 0, "validation": 1, "test": 0}
    assert data.splits["validation"].labels.tolist() == [1, 7]


def test_a_byte_order_mark_windows_line_ends_and_trailing_blank_lines_are_ignored(
    tmp_path: Path,
) -> None:
    plain = list(read_tsv(write(tmp_path / "a.tsv", ["[MAX 1 2 ]\t2", "4\t4"])))
    text = "\ufeffSource\tTarget\r\n[MAX 1 2 ]\t2\r\n4\t4\r\n\r\n\n"
    (tmp_path / "b.tsv").write_bytes(text.encode())
    assert list(read_tsv(tmp_path / "b.tsv")) == plain and not any(row.fault for row in plain)


def test_data_with_wrong_labels_are_not_called_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ListOps, "sizes", {"train": 3, "validation": 3, "test": 3})
    for name in ("train", "val", "test"):
        write(tmp_path / f"basic_{name}.tsv", ["[MAX 1 2 ]\t2"] * 3)
    kinds = []
    for label in (2, 1):
        write(tmp_path / "basic_test.tsv", ["[MAX 1 2 ]\t2", f"[MAX 1 2 ]\t{label}", "4\t4"])
        data = cache.load("listops", ListOps(), tmp_path / "cache", tmp_path)
        kinds.append(data.source.kind)
        assert cache.load("listops", ListOps(), tmp_path / "cache", tmp_path).source == data.source
    assert kinds == ["published", "other"] and "1 of whose labels" in data.source.description
    with pytest.raises(DataError, match="source=published: .* is other, by its content"):
        cache.load("listops", ListOps(source="published"), tmp_path / "cache", tmp_path)


def test_a_wrong_header_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.tsv"
    file.write_text("Target\tSource\n")
    with pytest.raises(DataError, match="line 1: 'Target.*should be 'Source"):
        list(read_tsv(file))


def test_published_files_are_found_and_an_incomplete_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "lra_release" / "lra_release" / "listops-1000"
    folder.mkdir(parents=True)
    for name in ("train", "val", "test"):
        write(folder / f"basic_{name}.tsv", ["( [MIN 1 ) ]\t1"])
    assert ListOps().locate(tmp_path).kind == "published"
    assert ListOps(num_train=9).locate(tmp_path).kind == "generated"
    with pytest.raises(DataError, match="basic_train.tsv: holds 1 expressions.*has 96000"):
        cache.load("listops", ListOps(), tmp_path / "cache", tmp_path)


def test_splits_are_consecutive_and_disjoint(tmp_path: Path) -> None:
    task = ListOps(num_train=30, num_validation=20, num_test=10, min_length=9, max_length=40)
    splits = cache.load("listops", task, tmp_path).splits
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [30, 20, 10]
    sequences = [
        bytes(split.tokens[a:b])
        for split in splits.values()
        for a, b in zip(split.offsets[:-1], split.offsets[1:], strict=True)
    ]
    assert len(set(sequences)) == 60
    labels = [label for split in splits.values() for label in split.labels]
    assert [evaluate(s) for s in sequences] == labels


@pytest.mark.parametrize(
    "options",
    [
        {"num_test": 0},
        {"num_train": 10**12},
        {"min_length": 30, "max_length": 31},
        {"max_length": 10**9},
        {"max_arguments": 11},
        # No expression is so long with one operator, or at any depth that is allowed here.
        {"min_length": 30, "max_length": 40, "max_depth": 2},
        {"min_length": 60_000, "max_length": 70_000},
        # There are only ten expressions of one symbol.
        {"min_length": 0, "max_length": 3, "num_train": 64},
    ],
)
def test_an_option_out_of_range_is_named(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"task.options.{next(iter(options))}="):
        ListOps(**options)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(),
        Grammar(min_length=20, max_length=128, max_depth=4),
        Grammar(min_length=3, max_length=5, max_depth=2),
        Grammar(min_length=9, max_length=40, max_depth=3, max_arguments=4),
    ],
)
def test_the_computed_share_of_draws_that_fit_matches_actual_draws(grammar: Grammar) -> None:
    rng = random.Random(3)
    drawn = sum(listops_generator._draw(rng, grammar) is not None for _ in range(20_000)) / 20_000
    share = float(listops_generator._shares(grammar)[grammar.min_length + 1 :].sum())
    assert drawn == pytest.approx(share, abs=4.5 * math.sqrt(share * (1 - share) / 20_000))


def test_exactly_the_computed_number_of_short_expressions_can_be_drawn() -> None:
    grammar = Grammar(min_length=0, max_length=5, max_depth=3)
    # Ten digits, and four operators over two of them.
    assert listops_generator._numbers(grammar) == 410
    assert len(list(generate(410, grammar))) == 410
    with pytest.raises(ValueError, match="there are 410 such expressions, not 411"):
        next(generate(411, grammar))


def test_a_grammar_with_few_expressions_of_any_length_is_refused_for_more() -> None:
    # 410 expressions have at most five symbols, whatever the longest length asked for.
    flat = {"min_length": 0, "max_depth": 2, "max_arguments": 2}
    assert len(list(generate(410, Grammar(max_length=2000, **flat)))) == 410
    with pytest.raises(ValueError, match="there are 410 such expressions, not 411"):
        next(generate(411, Grammar(max_length=2000, **flat)))
    # Levels that no expression of such a length can have take no time.
    options = {"num_train": 9, "num_validation": 9, "num_test": 9}
    ListOps(**options, min_length=5, max_length=60, max_depth=10**9)


def kill_generating_processes(grammar: Grammar, seed: int, index: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_ends_the_build_and_frees_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listops_generator, "_chunk", kill_generating_processes)
    monkeypatch.setattr(listops, "PARALLEL_FROM", 0)
    monkeypatch.setattr(listops, "available_cores", lambda: 2)
    task = ListOps(num_train=3, num_validation=2, num_test=1, min_length=9, max_length=40)
    for _ in range(2):
        with pytest.raises(DataError, match="a process that generated ListOps was killed"):
            cache.load("listops", task, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_job_with_only_some_of_the_cores_generates_with_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def watched(
        total: int, grammar: Grammar, seed: int, workers: int
    ) -> Iterator[tuple[bytes, int]]:
        asked.append(workers)
        return generate(total, grammar, seed, 1)

    monkeypatch.setattr(listops, "generate", watched)
    monkeypatch.setattr(listops, "PARALLEL_FROM", 0)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {5})
    task = ListOps(num_train=3, num_validation=2, num_test=1, min_length=9, max_length=40)
    cache.load("listops", task, tmp_path)
    assert asked == [available_cores()]
