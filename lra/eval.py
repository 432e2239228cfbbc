"""Test the chosen parameters of a finished run again.

    lra eval task=listops attention=softmax scale=mini
    lra eval results/runs/mini/nystromformer/listops/softmax/default/seed0

Name a run by its words or by its folder; several words name several runs.

The command reads the configuration from the run's record, the parameters from `best.pt`, and the
same data. It prints the accuracy beside the recorded one; the exit code is 1 if they differ.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from lra import custom
from lra.build import batches_for, build_task
from lra.cell import check_same_data, load_run, run_folders
from lra.evaluation import predict
from lra.machine import resolve_device, resolve_threads
from lra.paths import cache_dir
from lra.tasks import DataError, cache
from lra.terminal import command_parser, refused, run


def main() -> None:
    """Test the runs that the command line names."""
    parser = command_parser("eval", __doc__)
    parser.add_argument("words", nargs="+", help="key=value, as for lra train, or run folders")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:<index>; default: the run's")
    parser.add_argument("--data-dir", help="folder of raw data; overrides LRA_DATA_DIR")
    parser.add_argument("--cache-dir", default=cache_dir(), help="folder of built data sets")
    args = parser.parse_intermixed_args()
    with refused(ValueError, DataError):
        there = list(run_folders(args.words))
        equal = [test(each, args.device, args.data_dir, args.cache_dir) for each in there]
    sys.exit(not all(equal))


def test(folder: Path, device: str | None, data_dir: str | None, cache_dir: str) -> bool:
    """Test a run's parameters, print the accuracy, and return whether it is the recorded one.

    Raises:
        ConfigError: The run has no result, or the data differ.
        DataError: The data are missing or damaged.
    """
    config, record, model = load_run(folder)
    config = replace(config, device=device or record.device, data_dir=data_dir, cache_dir=cache_dir)
    torch.set_num_threads(resolve_threads(record.threads))
    task = build_task(config)
    data = cache.load(config.task.name, task, Path(config.cache_dir), config.raw_data_dir())
    check_same_data(data.fingerprint, record.data_fingerprint)
    model.to(resolve_device(config.device))
    batches = batches_for(config, task, model, data.splits["test"])
    correct = predict(model, batches, config.train).num_correct
    total = record.test_total or 0
    print(f"{config.cell}: test {correct / total:.4f} ({correct} of {total})")
    print(f"recorded: {record.test_accuracy:.4f} ({record.test_correct} of {total})")
    if correct != record.test_correct and custom.sources(config.attention) != (
        record.attention_source
    ):
        print(f"{config.attention.name} has changed since this run")
    return correct == record.test_correct


if __name__ == "__main__":
    run(main)
