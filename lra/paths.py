"""Where the suite's own files lie: in the checkout, or in the installed package."""

from pathlib import Path

# Made by setup.py; a checkout has none.
_INSTALLED = Path(__file__).resolve().parent / "files"
ROOT = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
PUBLISHED = ROOT / "results" / "published.csv"
