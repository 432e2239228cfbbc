"""Two methods compared over seeds, against intervals worked out by hand."""

import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_report import OK, scored, store

from lra import compare
from lra.compare import comparisons, page
from lra.predictions import Predictions
from lra.record import Method
from lra.report.standing import discordant

FIRST, SECOND = Method("softmax"), Method("mra")


def pairs(*correct: tuple[int, int]) -> list[compare.Record]:
    """Return records of both methods: for each seed, how many of 2,000 answers are correct."""
    return [
        scored(replace(OK, attention=method.attention, seed=seed), count)
        for seed, counts in enumerate(correct)
        for method, count in zip((FIRST, SECOND), counts, strict=True)
    ]


def test_several_seeds_have_students_interval_for_their_differences() -> None:
    # Differences of 1, 2 and 3 %: mean 2, standard deviation 1, t at 2 degrees of freedom 4.303.
    [found] = comparisons(pairs((820, 800), (840, 800), (860, 800)), FIRST, SECOND)
    assert found.differences == pytest.approx([1, 2, 3])
    half = 4.303 / 3**0.5
    assert found.interval == pytest.approx((2 - half, 2 + half))
    assert found.words == "no difference is shown between softmax and mra"
    [sure] = comparisons(pairs((820, 800), (821, 800), (819, 800)), SECOND, FIRST)
    assert sure.mean == pytest.approx(-1) and sure.words == "softmax is better than mra"


def test_equal_differences_show_nothing_and_say_why_their_interval_has_no_width() -> None:
    records = pairs((801, 800), (821, 820), (841, 840))
    text = page(records, FIRST, SECOND)
    assert "no difference is shown between softmax and mra" in text
    assert "listops: signs over 3 seeds, p = 0.25." in text
    assert "has no width, and the signs of the differences have to agree" in text
    # Equal up to rounding.
    rounded = page(pairs((1001, 1000), (1201, 1200), (1401, 1400)), FIRST, SECOND)
    assert "has no width" in rounded
    assert "no width" not in page(pairs((801, 800), (822, 820), (823, 820)), FIRST, SECOND)


def test_one_seed_has_the_interval_for_two_proportions() -> None:
    [found] = comparisons(pairs((900, 800)), FIRST, SECOND)
    # Newcombe's interval from Wilson's of 900 / 2000 and 800 / 2000.
    assert found.mean == pytest.approx(5)
    assert found.interval == pytest.approx((1.9362, 8.0506), abs=1e-3)
    text = page(pairs((900, 800)), FIRST, SECOND)
    assert "softmax is better than mra" in text and "For a single seed, the interval" in text


def test_only_cells_with_the_same_seed_and_data_are_paired() -> None:
    records = pairs((900, 800), (900, 800))
    records[1] = replace(records[1], data_fingerprint="cd" * 32)
    [found] = comparisons(records, FIRST, SECOND)
    assert [record.seed for record in found.first] == [1]
    assert found.left_out == "softmax seed 0"
    assert "no task with equal seeds and data" in page(records[:2], FIRST, SECOND)


def test_seeds_on_different_data_are_never_averaged_and_stand_ins_are_labelled() -> None:
    records = pairs((900, 800), (900, 800), (600, 1000))
    records[4:] = [replace(r, data_fingerprint="cd" * 32, data_source="other") for r in records[4:]]
    one, other = comparisons(records, FIRST, SECOND)
    assert (one.task, len(one.first)) == ("listops [generated abababab]", 2)
    assert (other.task, len(other.first)) == ("listops [other cdcdcdcd]", 1)
    assert (one.mean, other.mean) == pytest.approx((5, -20))
    made_up = [replace(r, data_source="stand-in") for r in records[:2]]
    assert "listops (stand-in): softmax is better" in page(made_up, FIRST, SECOND)


def run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["compare", f"runs_dir={folder}", "scale=mini", *words])
    try:
        compare.main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    return status, *capsys.readouterr()


def test_two_seeds_decide_nothing_and_it_is_said() -> None:
    # The differences are alike, but two may be so by chance.
    counts = [(900, 800), (901, 800), (902, 800)]
    texts = {n: page(pairs(*counts[:n]), FIRST, SECOND) for n in (1, 2, 3)}
    assert "listops: two seeds do not decide between softmax and mra." in texts[2]
    assert "Two seeds are too few for a useful test" in texts[2]
    for n in (1, 3):
        assert "softmax is better than mra" in texts[n] and "Two seeds" not in texts[n]
    # t is 5.05 / (0.05 / sqrt(3)) = 175, and p is about 1 / t^2 for two degrees of freedom.
    assert "listops: paired t over 3 seeds, p = 3.3e-05." in texts[3]
    assert "| listops | 0,1,2 |" in texts[3]


def test_seeds_that_one_method_lacks_are_named() -> None:
    text = page(pairs((900, 800), (900, 800))[:3], FIRST, SECOND)
    assert "listops: left out, as the other method has none on these data: softmax seed 1." in text


def test_several_seeds_must_differ_beyond_the_test_set_that_they_share_too() -> None:
    records = pairs((820, 800), (821, 800), (819, 800))
    labels = np.zeros(2000, dtype=int)

    def answers(record: compare.Record) -> Predictions:
        # Softmax is right 20 times more often, but the two disagree on 580 examples.
        right = np.arange(2000) < record.test_correct
        if record.attention == "mra":
            right = np.roll(right, 300)
        return Predictions((~right).astype(int), labels)

    [alone] = comparisons(records, FIRST, SECOND)
    [found] = comparisons(records, FIRST, SECOND, answers)
    assert alone.words == "softmax is better than mra"
    assert found.words == "no difference is shown between softmax and mra"
    assert found.outcome.test.startswith("paired t over 3 seeds, p = 0.00083; z over test examples")
    assert found.outcome.test.endswith("; together -1.4 to +3.4 points")
    # By hand: 300 + 280 of 2,000 examples, a mean of 1 %, and .05 % between seeds.
    half = (196**2 * (580 / 2000 - 0.01**2) / 2000 + (4.303 * 0.05) ** 2 / 3) ** 0.5
    assert found.interval == pytest.approx((1 - half, 1 + half), abs=0.01)


def test_the_words_choose_the_two_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = replace(OK, attention="mra", variant="deep")
    store(tmp_path, *pairs((900, 800)), scored(other, 1000))
    status, out, _ = run(tmp_path, monkeypatch, capsys, "attention=mra,softmax")
    assert status == 0 and "| 40.0 | 45.0    | -5.0 " in out
    status, out, _ = run(tmp_path, monkeypatch, capsys, "attention=mra", "variant=deep,default")
    assert status == 0 and "| 50.0       | 40.0 | +10.0 " in out
    store(tmp_path, scored(replace(other, variant="100"), 900))
    status, out, _ = run(tmp_path, monkeypatch, capsys, "attention=mra", "variant=100,deep")
    assert status == 0 and "| 45.0      | 50.0       | -5.0 " in out
    status, _, err = run(tmp_path, monkeypatch, capsys, "attention=linear")
    assert status == 2 and "two methods with results are needed; these words find none" in err


def test_one_seed_with_stored_predictions_is_compared_example_by_example() -> None:
    records = pairs((800, 830))
    labels = np.zeros(2000, dtype=int)
    # Only the first is right on 10 examples, only the second on 40.
    first, second = np.zeros(2000, dtype=bool), np.zeros(2000, dtype=bool)
    first[:800], second[10:840] = True, True
    right = dict(zip(dict.fromkeys(r.attention for r in records), (first, second), strict=True))

    def answers(record: compare.Record) -> Predictions:
        return Predictions((~right[record.attention]).astype(int), labels)

    one, other = (record.method for record in records)
    [found] = comparisons(records, one, other, answers)
    assert found.each is not None and discordant(found.each) == (10, 40)
    # sqrt(50 - 30 ** 2 / 2000) / 2000 is the standard error, 0.352 %.
    assert found.interval == pytest.approx((-1.5 - 0.6898, -1.5 + 0.6898), abs=1e-3)
    [without] = comparisons(records, one, other)
    assert without.each is None and without.interval[1] - without.mean > 3
    text = page(records, one, other, answers)
    # Even with names as long as these, no sentence loses its end.
    named = [
        replace(record, variant=f"rate_{index}e-3_for_longer")
        for index, record in enumerate(records)
    ]
    assert page(named, *(record.method for record in named), answers).count("p = 2.4e-05.") == 1
    assert f"10 test examples are classified correctly only by {one}, 40 only by {other}" in text
    assert "McNemar's exact p = 2.4e-05" in text and f"{other} is better than {one}" in text


@pytest.mark.parametrize("alone", [(0, 4), (5, 0), (14, 5), (30, 16)])
def test_the_verdict_on_one_seed_is_that_of_the_exact_test(alone: tuple[int, int]) -> None:
    # The approximate interval excludes zero, but McNemar's p, which a report uses, is above .05.
    first, second = pairs((900, 900 + alone[1] - alone[0]))
    each = np.repeat([1.0, -1.0, 0.0], [*alone, 2000 - sum(alone)])
    found = compare.Comparison("listops", (first,), (second,), each)
    assert found.interval[0] > 0 or found.interval[1] < 0
    assert found.words == "no difference is shown between softmax and mra"


def test_many_seeds_are_judged_by_students_distribution_not_the_normal_one() -> None:
    counts = [800 + (20 if seed % 2 else -20) + 7 for seed in range(33)]
    [found] = comparisons(pairs(*[(count, 800) for count in counts]), FIRST, SECOND)
    low, high = found.interval
    # The 0.975 quantile for 32 degrees of freedom.
    half = 2.03693 * statistics.stdev(found.differences) / 33**0.5
    assert high - found.mean == pytest.approx(half, rel=1e-4)
    assert (low > 0) == (found.words == "softmax is better than mra")


def test_two_methods_at_chance_are_not_ranked() -> None:
    majority = OK.test_majority_rate
    assert majority is not None
    chance = round(2000 * majority)
    [found] = comparisons(pairs((chance, chance - 200)), FIRST, SECOND)
    assert found.words == "softmax and mra are both at chance"
    [learnt] = comparisons(pairs((chance + 300, chance - 200)), FIRST, SECOND)
    assert learnt.words == "softmax is better than mra"


def test_several_versions_of_a_file_and_departures_from_recipes_are_noted() -> None:
    records = pairs((900, 800), (910, 820))
    assert "Not one method" not in page(records, FIRST, SECOND)
    records[1] = replace(records[1], attention_source="a.py sha256 0123")
    records[2] = replace(records[2], departures="train.steps=20 instead of 40")
    records[3] = replace(records[3], parameters=180_000)
    text = page(records, FIRST, SECOND)
    assert "Not one recipe: the seeds of listops/mra differ in parameters." in text
    assert "Not one method: the seeds of listops/mra were trained with 2 versions" in text
    assert "listops/softmax departs from its recipe: train.steps=20 instead of 40." in text
