"""Test a finished run's chosen parameters again.

    python -m lra.eval results/runs/mini/nystromformer/listops/softmax/default/seed0

Reads the run's record for its configuration, `best.pt` for the parameters and the same data, and
prints the accuracy beside the recorded one; the exit code is 1 where they differ.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from lra import checkpoint, results
from lra.config import Config, ConfigError, resolve
from lra.loop import BEST, count_correct
from lra.tasks import DataError, cache
from lra.train import batches_for, build_model, build_task, resolve_device


def test_again(folder: Path, config: Config, record: results.Record) -> int:
    """Return how many test examples a run's best parameters classify rightly.

    Raises:
        ConfigError: The data are not those that the run was trained on.
        ValueError: `best.pt` is missing or damaged.
    """
    device = resolve_device(config.device)
    task = build_task(config)
    dataset = cache.load(config.task.name, task, Path(config.cache_dir), config.raw_data_dir())
    if dataset.fingerprint != record.data_fingerprint:
        raise ConfigError(
            f"the data are not those of the run: sha256 {dataset.fingerprint[:16]} here,"
            f" {record.data_fingerprint[:16]} there"
        )
    model = build_model(config).to(device)
    model.load_state_dict(checkpoint.load(folder / BEST, device)["model"])
    test = batches_for(config, task, model, dataset.splits["test"])
    return count_correct(model, test, config.train)


def main() -> None:
    """Test the run that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m lra.eval", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="run folder, with result.json and best.pt")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index>")
    parser.add_argument("--data-dir", help="folder of raw data, before LRA_DATA_DIR")
    parser.add_argument("--cache-dir", default="data/cache", help="folder of built data sets")
    args = parser.parse_args()
    try:
        record = results.read(args.run / results.NAME)
        config = resolve(OmegaConf.merge(OmegaConf.structured(Config), record.config))
        config = replace(
            config, device=args.device, data_dir=args.data_dir, cache_dir=args.cache_dir
        )
        correct = test_again(args.run, config, record)
    except (ValueError, DataError) as error:
        sys.exit(f"{error}")
    total = record.test_total or 0
    print(f"{config.cell}: test {correct / total:.4f} ({correct} of {total})")
    print(f"recorded: {record.test_accuracy:.4f} ({record.test_correct} of {total})")
    sys.exit(correct != record.test_correct)


if __name__ == "__main__":
    main()
