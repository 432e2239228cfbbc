"""Train one cell, or a sweep of them, and leave a record each.

    python -m lra.train task=listops attention=fourier seed=1
    python -m lra.train -m task=listops,image attention=softmax,fourier seed=0,1

A finished cell is skipped, an unfinished one continues; `force=true` trains it again.
"""

import logging
import math
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig
from tqdm.contrib.logging import logging_redirect_tqdm

from lra import help
from lra.config import ConfigError, register, resolve
from lra.paths import CONFIGS
from lra.runner import run_cell
from lra.signals import StoppedError
from lra.tasks import DataError

log = logging.getLogger(__name__)


def _place_in_sweep() -> str:
    """Return `[3/20] ` for the third of twenty cells, nothing for a single one."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        return ""
    number = hydra_config.job.num + 1
    words = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    parsed = [o for o in OverridesParser.create().parse_overrides(words) if o.is_sweep_override()]
    # A launcher's workers have other command lines, and a glob counts only what it finds.
    if not parsed or any(not override.is_choice_sweep() for override in parsed):
        return f"[{number}] "
    total = math.prod(len(list(override.sweep_iterator())) for override in parsed)
    return f"[{number}/{total}] " if number <= total else f"[{number}] "


register()
help.register()


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="train")  # type: ignore[untyped-decorator]  # Hydra has no types
def main(composed: DictConfig) -> None:
    """Train the cell that Hydra composed, in the folder that Hydra made for it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        with logging_redirect_tqdm():
            run_cell(resolve(composed), folder, _place_in_sweep())
    except (ConfigError, DataError) as error:
        # A traceback would bury the line that helps; in a sweep the other cells go on.
        log.error("%s", error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise
        sys.exit(2)
    except StoppedError as error:
        log.warning("%s", error)
        sys.exit(error.code)


if __name__ == "__main__":
    main()
