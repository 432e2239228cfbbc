"""Measure the cost of a training step: at several lengths, and by its parts."""
