"""Test a finished run's chosen parameters again.

    python -m lra.eval results/runs/mini/nystromformer/listops/softmax/default/seed0

Reads the run's record for its configuration, `best.pt` for the parameters and the same data, and
prints the accuracy beside the recorded one; the exit code is 1 where they differ.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from lra.build import batches_for, build_task
from lra.cell import load_run
from lra.config import ConfigError
from lra.loop import count_correct
from lra.machine import resolve_device
from lra.paths import cache_dir
from lra.tasks import DataError, cache


def main() -> None:
    """Test the run that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m lra.eval", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="run folder, with result.json and best.pt")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:<index>; else the run's")
    parser.add_argument("--data-dir", help="folder of raw data, before LRA_DATA_DIR")
    parser.add_argument("--cache-dir", default=cache_dir(), help="folder of built data sets")
    args = parser.parse_args()
    try:
        config, record, model = load_run(args.run)
        device = args.device or record.device
        config = replace(config, device=device, data_dir=args.data_dir, cache_dir=args.cache_dir)
        torch.set_num_threads(record.threads)
        task = build_task(config)
        data = cache.load(config.task.name, task, Path(config.cache_dir), config.raw_data_dir())
        if data.fingerprint != record.data_fingerprint:
            raise ConfigError(
                f"the data are not those of the run: sha256 {data.fingerprint[:16]} here,"
                f" {record.data_fingerprint[:16]} there"
            )
        model.to(resolve_device(config.device))
        correct = count_correct(
            model, batches_for(config, task, model, data.splits["test"]), config.train
        )
    except (ValueError, DataError) as error:
        sys.exit(f"{error}")
    total = record.test_total or 0
    print(f"{config.cell}: test {correct / total:.4f} ({correct} of {total})")
    print(f"recorded: {record.test_accuracy:.4f} ({record.test_correct} of {total})")
    sys.exit(correct != record.test_correct)


if __name__ == "__main__":
    main()
