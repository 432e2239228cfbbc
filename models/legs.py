"""The spectrum of HiPPO-LegS, from which diagonal state-space layers are initialised.

LegS, A[k, j] = -sqrt((2k + 1)(2j + 1)) below the diagonal and -(k + 1) on it, is a normal matrix up
to rank one: with P[k] = sqrt(k + 1/2), S = A + P P^T is -1/2 plus a skew-symmetric matrix
(arXiv 2111.00396, appendix C; arXiv 2206.11893).
"""

import numpy as np
from numpy.typing import NDArray


def legs_spectrum(size: int) -> tuple[NDArray[np.float64], NDArray[np.complex128]]:
    """Diagonalise the normal part of LegS and keep one of each conjugate pair.

    Args:
        size: N, an even number of states.

    Returns:
        The positive imaginary parts of the eigenvalues `(N / 2,)`, in ascending order (all
        real parts are -1/2), and their unit eigenvectors `(N, N / 2)`. The first entry of each is
        real, as LAPACK leaves it, and positive, so that they are the same on every machine.
    """
    k = np.arange(size)
    root = np.sqrt(2 * k + 1)
    legs = -np.tril(root[:, None] * root) + np.diag(k)
    normal = legs + 0.5 * root[:, None] * root
    skew = (normal - normal.T) / 2
    frequencies, vectors = np.linalg.eigh(-1j * skew)
    vectors = vectors * (np.abs(vectors[0]) / vectors[0])
    return frequencies[size // 2 :], vectors[:, size // 2 :]
