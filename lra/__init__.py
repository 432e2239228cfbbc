"""The Long Range Arena benchmark: data, training, records and tables."""
