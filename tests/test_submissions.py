"""Results that others submit: what is refused, and how the rest is shown."""

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from test_report import FAILED, OK, scored, store

import lra.submission
from lra.compose import groups
from lra.config import config_hash
from lra.record import Record
from lra.report.pages import write_report
from lra.report.submissions import (
    SubmissionError,
    known_data,
    problems,
    read_submission,
    read_submissions,
)
from lra.submission import oversized, parameters_of_softmax

# Data with as many test examples as the records of these tests have.
PAPER, LISTOPS = (
    next(
        row
        for row in known_data()
        if (row["task"], row["scales"], row["test_total"]) == ("listops", scale, "2000")
    )
    for scale in ("paper", "mini")
)
GOOD = replace(
    OK,
    attention="their_file.Theirs",
    attention_source="their_file.py, sha256 00",
    data_fingerprint=LISTOPS["fingerprint"],
    test_majority_rate=float(LISTOPS["majority_rate"]),
    config_hash=config_hash(OK.config),
    parameters=80_000,
)
OF_PAPER = replace(
    scored(GOOD, 1700),
    scale="paper",
    data_fingerprint=PAPER["fingerprint"],
    test_majority_rate=float(PAPER["majority_rate"]),
)
COMMIT = "1a2b3c4d"


def submit(folder: Path, *records: Record, stem: str = "theirs", **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    values = {"name": stem, "link": "https://example.org/x", "commit": COMMIT}
    file = folder / f"{stem}.json"
    file.write_text(json.dumps(values | {"records": [asdict(r) for r in records]} | changes))
    return file


def test_a_record_under_the_name_of_another_seed_is_reported(tmp_path: Path) -> None:
    config = GOOD.config | {"seed": GOOD.seed}
    first = replace(GOOD, config=config, config_hash=config_hash(config))
    file = submit(tmp_path, first, replace(first, seed=GOOD.seed + 1))
    [line] = problems(read_submission(file))
    assert line.startswith("record 2 (")
    assert line.endswith("seed=1 contradicts its configuration, which has 0")


def test_complete_results_on_known_data_can_be_shown(tmp_path: Path) -> None:
    file = submit(tmp_path, GOOD, replace(scored(GOOD, 900), seed=1))
    submission = read_submission(file)
    assert submission.records == (GOOD, replace(scored(GOOD, 900), seed=1))
    assert problems(submission, [submission]) == []
    assert read_submissions(tmp_path) == [submission]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other"}, "name='other' must be the name of its file, 'theirs'"),
        ({"link": "ftp://x"}, "link='ftp://x' must be the https:// address of its code"),
        ({"link": "javascript:alert(1)"}, "link='javascript:alert"),
        ({"link": 'https://x" onclick="y'}, "link='https://x\" onclick"),
        ({"commit": "main"}, "commit='main' must be 7 to 40 hex digits"),
        ({"commit": 1234567}, "commit=1234567 must be"),
        ({"records": []}, "records must be a list of at least one"),
        ({"records": [{"schema": 1}]}, r"record 1: key 'attention' is missing"),
        ({"more": 1}, "has name, link, commit, records, more, must have name, link"),
        ({"\x1b[2J": 1}, "has name, link, commit, records, \\\\x1b\\[2J, must have"),
    ],
)
def test_a_malformed_submission_is_refused_by_file_and_key(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = submit(tmp_path, GOOD, **change)
    with pytest.raises(SubmissionError, match=message.replace("(", r"\(")) as refused:
        read_submission(file)
    assert str(refused.value).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "softmax"}, "attention='softmax' is the suite's own"),
        ({"data_fingerprint": "ab" * 32}, "data_fingerprint='abababababababab' (generated) is not"),
        ({"data_source": "published"}, "data_source='published' must be 'generated'"),
        ({"test_total": 1999, "test_accuracy": 800 / 1999}, "test_total=1999 must be 2000, the"),
        ({"test_majority_rate": 0.1}, "test_majority_rate=0.1000 must be 0.1490"),
        ({"parameters": 0}, "parameters=0 must be at least 1"),
        ({"config_hash": "00"}, "config_hash='00' must be"),
        ({"scale": "paper"}, "scale='paper' must be mini, the scale of its data"),
        ({"scale": "x" * 300}, "must be mini, the scale of its data"),
        ({"protocol": "mine"}, "protocol='mine' must be one of"),
        ({"protocol": "x" * 300}, "must be one of"),
        ({"data_skipped_rows": 3}, "data_skipped_rows=3 must be 0"),
        ({"task": "chess"}, "is not known; no data of that task are known"),
    ],
)
def test_whatever_is_wrong_with_a_record_is_reported(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    [line] = problems(read_submission(submit(tmp_path, replace(GOOD, **change))))
    assert message in line and line.startswith("record 1 (")


def test_a_failed_run_is_not_a_result(tmp_path: Path) -> None:
    failed = replace(GOOD, status="failed", reason="nan", test_accuracy=None, test_correct=None)
    lines = problems(read_submission(submit(tmp_path, failed)))
    assert lines == [
        "record 1 (listops/their_file.Theirs/default/seed0): status='failed' must be 'ok'"
    ]


def test_no_record_counts_twice(tmp_path: Path) -> None:
    first = read_submission(submit(tmp_path, GOOD))
    again = submit(tmp_path, replace(GOOD, attention="renamed"), stem="zebra")
    assert problems(read_submission(again), [first]) == [
        "record 1: is already in submission theirs"
    ]
    assert problems(read_submission(submit(tmp_path, GOOD, GOOD))) == ["record 2: repeats record 1"]
    assert [each.name for each in read_submissions(tmp_path)] == ["zebra"]


@pytest.mark.parametrize(
    "change", [{"threads": 2}, {"device": "cuda", "threads": 2}, {"variant": "again"}]
)
def test_a_cell_counts_once_wherever_it_ran_and_whatever_its_variant(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    def made(**values: Any) -> Record:
        config = GOOD.config | {key: getattr(GOOD, key) for key in change} | values
        return replace(GOOD, config=config, config_hash=config_hash(config), **values)

    file = submit(tmp_path, made(), made(**change))
    assert problems(read_submission(file)) == ["record 2: repeats record 1"]
    file = submit(tmp_path, made(), made(seed=1))
    assert problems(read_submission(file)) == []


def test_a_submission_that_reports_would_not_read_is_refused(tmp_path: Path) -> None:
    file = submit(tmp_path, GOOD).rename(tmp_path / "theirs")
    with pytest.raises(SubmissionError, match=r"theirs: must end in \.json"):
        read_submission(file)


def test_seeds_of_one_backend_have_the_same_number_of_parameters(tmp_path: Path) -> None:
    other = replace(GOOD, seed=1, parameters=80_001)
    [line] = problems(read_submission(submit(tmp_path, GOOD, other)))
    assert "parameters=80000 and 80001 differ between seeds" in line


def test_more_than_a_tenth_above_the_parameters_of_softmax_is_too_large(tmp_path: Path) -> None:
    assert parameters_of_softmax(GOOD) == 79_754
    for parameters, lines in ((87_729, 0), (87_730, 1)):
        file = submit(tmp_path, replace(GOOD, parameters=parameters))
        found = list(oversized(read_submission(file)))
        assert len(found) == lines
    assert "parameters=87,730 must be at most 87,729, a tenth more than softmax" in found[0]


def test_seeds_of_one_backend_use_the_same_version_of_its_file(tmp_path: Path) -> None:
    other = replace(GOOD, seed=1, attention_source="their_file.py sha256 0000")
    [line] = problems(read_submission(submit(tmp_path, GOOD, other)))
    assert "attention_source=" in line and line.endswith("differ between seeds")


def test_run_folders_become_a_submission_and_anything_missing_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "submissions" / "mine.json"
    runs = store(tmp_path / "runs", GOOD, replace(GOOD, seed=1))

    def make(*words: str) -> str:
        monkeypatch.setattr("sys.argv", ["lra submission", "make", str(file), *words])
        lra.submission.main()
        return capsys.readouterr().out

    printed = make(str(runs), "--link", "https://example.org/x", "--commit", COMMIT)
    assert printed == f"{file}: 2 records of their_file.Theirs, no problem found\n"
    assert read_submission(file).records == (GOOD, replace(GOOD, seed=1))
    for words, message in (
        ([str(tmp_path / "none")], "no record in"),
        ([str(runs), "--commit", COMMIT], "link='' must be the https:// address"),
    ):
        with pytest.raises(SystemExit, match="1"):
            make(*words)
        assert message in capsys.readouterr().err
        # The existing file stays as it was.
        assert read_submission(file).records == (GOOD, replace(GOOD, seed=1))
    file.unlink()
    with pytest.raises(SystemExit, match="1"):
        make(str(runs), "--commit", COMMIT)
    assert not file.exists()


def test_the_command_says_what_is_wrong_and_exits_accordingly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def check(file: Path) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["lra submission", "check", str(file)])
        try:
            lra.submission.main()
        except SystemExit as end:
            return int(end.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().out

    assert check(submit(tmp_path, GOOD)) == (
        0,
        f"{tmp_path / 'theirs.json'}: 1 record of their_file.Theirs, no problem found\n",
    )
    for records in ([replace(GOOD, parameters=10**6)], [replace(GOOD, test_majority_rate=0.2)]):
        code, message = check(submit(tmp_path, *records))
        assert code == 1 and message.startswith(f"{tmp_path / 'theirs.json'}: ")
    assert check(tmp_path / "none.json")[0] == 1


def test_submissions_have_a_section_of_their_own_in_every_format(tmp_path: Path) -> None:
    runs = store(tmp_path / "runs", OK, FAILED)
    found = tmp_path / "submissions"
    # Half a surrogate pair is valid text in JSON, but not in UTF-8.
    submit(found, scored(GOOD, 1900), replace(scored(GOOD, 1800), seed=1, machine="\ud800"))
    submit(found, OF_PAPER, stem="of-another-scale")
    submit(found, replace(GOOD, test_total=7, test_correct=7, test_accuracy=1.0), stem="part")
    submissions = read_submissions(found)
    assert [each.name for each in submissions] == ["of-another-scale", "theirs"]
    write_report(runs, tmp_path / "out", "mini", "nystromformer", submissions=submissions)
    folder = tmp_path / "out/mini/nystromformer"
    measured, _, others = (folder / "accuracy.md").read_text().partition("## Submissions")
    name = "theirs: their_file.Theirs"
    assert "their_file" not in measured and "another-scale" not in others and "part" not in others
    assert f"| {name}" in others and "92.5 ± 3.5 (n=2)" in others and "80,000" in others
    assert f"* theirs: https://example.org/x at commit {COMMIT}." in others
    # Our own results in this test are on unknown data.
    assert "The results submitted for listops use different data from ours" in others
    with open(folder / "accuracy.csv", newline="") as file:
        kinds = {row["attention"]: (row["kind"], row["seeds"]) for row in csv.DictReader(file)}
    assert kinds[name] == ("submitted", "2") and kinds["softmax"] == ("measured", "1")
    assert r"their\_file.Theirs & 92.5 $\pm$ 3.5 (n=2)" in (folder / "submissions.tex").read_text()
    page = (folder / "index.html").read_text()
    assert page.count(f'<th scope="row" class="name" data-sort="{name.lower()}">{name}</th>') == 1
    assert 'href="#submitted-1-1">92.5' in page and '<dialog id="submitted-1-1"' in page
    assert '<a href="https://example.org/x" rel="noreferrer">https://example.org/x</a>' in page
    write_report(runs, tmp_path / "out", "mini", "nystromformer")
    assert not (folder / "submissions.tex").exists()
    assert "Submissions" not in (folder / "index.html").read_text()


def test_known_data_are_complete_and_valid() -> None:
    for row in known_data():
        assert len(row["fingerprint"]) in (0, 64) and int(row["test_total"]) > 0
        assert not row["majority_rate"] or 0 < float(row["majority_rate"]) < 1
        assert row["source"] in ("published", "generated")
        assert row["scales"] and {*row["scales"].split()} <= {*groups().options("scale")}
