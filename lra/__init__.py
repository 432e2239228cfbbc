"""The Long Range Arena benchmark: data, training, records and tables."""

from lra import networks

__version__ = "0.1.0"

networks.claim()
