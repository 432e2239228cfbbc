"""Where the suite's own files lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
PUBLISHED = ROOT / "results" / "published.csv"
