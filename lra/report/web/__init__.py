"""The web page of a report: one file that works from disk, without a network."""
