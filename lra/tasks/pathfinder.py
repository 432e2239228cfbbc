"""Pathfinder and Path-X: do the two marked ends belong to one contour?"""

from lra.tasks.pathfinder_generator import generate, generate_chunks

__all__ = ["generate", "generate_chunks"]
