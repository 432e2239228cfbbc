"""Make tables and pictures from records, without torch."""
