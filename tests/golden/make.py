"""Make the published values that the tests compare with, by running the released code itself.

    pip install jax pywavelets torch
    git clone https://github.com/EvanZhuang/wavspa        # at 0610f76
    git clone https://github.com/mlpen/mra-attention      # at 7e08afe
    python tests/golden/make.py wavspa mra-attention

It writes `wavspa.npz` and `mra.npz` beside itself. All arithmetic is float64. Of the released code
nothing is copied here: its functions are imported, or cut out of its files, and run.

What had to be put in its place, for the code to run at all on a CPU:

* WavSpA's own switch to float32 is undone, and `jax.config`, a module then, and `flax.linen`, of
  which it uses `silu` alone, are the ones of today's jax.
* MRA's four CUDA operators are the dense forms below, in blocks of 8 tokens; its epsilons of 1e-6,
  which our form lacks, are 1e-300.
"""

import ast
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pywt
import torch
from jax.experimental import sparse

HERE = Path(__file__).parent
BLOCK = 8


def import_wavspa(clone):
    """Return the modules of the transforms, and the function of the lattice."""
    jax_config = types.ModuleType("jax.config")
    jax_config.config = jax.config
    linen = types.ModuleType("flax.linen")
    linen.silu = jax.nn.silu
    flax = types.ModuleType("flax")
    flax.linen = linen
    sys.modules |= {"jax.config": jax_config, "flax": flax, "flax.linen": linen}
    package = types.ModuleType("wavspa")
    package.__path__ = [str(clone / "wavspa")]
    sys.modules["wavspa"] = package
    import wavspa.conv_fwt_learn as filters
    import wavspa.wavelet_lifting as lifting

    jax.config.update("jax_enable_x64", True)
    block = clone / "lra_benchmarks/models/wavspa/wavspa_learn.py"
    return filters, lifting, cut_out(block, ["parametrized_wavelet"])["parametrized_wavelet"]


def cut_out(file, functions, **names):
    """Run the named functions of a file alone, whose imports need not be there."""
    tree = ast.parse(file.read_text().replace("1e-6", "1e-300"))
    tree.body = [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name in functions]
    assert len(tree.body) == len(functions), f"{file} has other functions"
    space = {"jax": jax, "jnp": jnp, "sparse": sparse, "torch": torch, **names}
    exec(compile(tree, str(file), "exec"), space)
    return space


def lattice(parametrized_wavelet, thetas):
    """Return the filters `(F, C)` of angles `(F / 2, C)`."""
    size = 2 * len(thetas)
    shift = jnp.roll(jnp.eye(size), 1, 1)
    given = sparse.BCOO.fromdense(shift, nse=size), jnp.linalg.inv(shift)
    return jnp.stack([parametrized_wavelet(t, *given) for t in thetas.T], 1)


def wavspa_values(clone):
    """Transform small signals of even and odd length, each as far as its case says."""
    filters, lifting, parametrized_wavelet = import_wavspa(clone)
    draw = np.random.default_rng(0)
    values = {f"x{n}": draw.normal(size=(2, n, 2)).round(3) for n in (12, 13)}

    def keep(case, coeffs, rec):
        for i, band in enumerate(coeffs):
            values[f"{case}/c{i}"] = np.asarray(band).reshape(2, -1, 2)
        values[f"{case}/rec"] = np.asarray(rec)

    cases = [("db", 12, 4, 2), ("db", 13, 8, 1), ("ada", 13, 4, 2), ("ortho", 12, 4, 1)]
    for kind, length, taps, level in cases:
        case = f"{kind}/x{length}/L{level}"
        h = np.repeat(np.array(pywt.Wavelet(f"db{taps // 2}").dec_lo)[:, None], 2, 1)
        if kind == "ada":
            h = h + draw.normal(size=h.shape, scale=0.3).round(3)
        if kind == "ortho":
            thetas = draw.uniform(0, 2 * np.pi, (taps // 2, 2)).round(3)
            values[f"{case}/thetas"] = thetas
            h = np.asarray(lattice(parametrized_wavelet, thetas))
        values[f"{case}/h"] = h
        coeffs = filters.wavedec(jnp.asarray(values[f"x{length}"]), jnp.asarray(h), level=level)
        keep(case, coeffs, filters.waverec(coeffs, jnp.asarray(h)))
    for length, level in ((12, 2), (13, 1), (13, 2)):
        x = jnp.asarray(values[f"x{length}"])
        coeffs = lifting.liftdec(x, level=level)
        keep(f"lift/x{length}/L{level}", coeffs, lifting.liftrec(coeffs))
    est, pred = (draw.normal(size=(4, 2)).round(3) for _ in range(2))
    case = "adalift/x13/L2"
    values |= {f"{case}/w_est": est, f"{case}/w_pred": pred}
    coeffs = lifting.liftdec_learn(jnp.asarray(values["x13"]), est, pred, level=2)
    keep(case, coeffs, lifting.liftrec_learn(coeffs, est, pred))
    return values


def operators():
    """Return MRA's CUDA operators as dense torch: a pair's matrix is keys by queries."""

    def blocks(x):
        return x.reshape(len(x), -1, BLOCK, x.shape[-1])

    def take(x, index):
        return torch.stack([x[g][index[g]] for g in range(len(x))])

    def sampled(q, k, pairs, block_size):
        num = q.shape[1] // BLOCK
        return take(blocks(k), pairs % num) @ take(blocks(q), pairs // num).mT

    def scatter(values, pairs, num):
        """Add up the matrices of each block row; `values` is (G, M, b, K)."""
        out = values.new_zeros(len(values), num, *values.shape[2:])
        for g in range(len(values)):
            out[g].index_add_(0, pairs[g] // num, values[g])
        return out

    def times_values(weights, pairs, v, num):
        return scatter(weights.mT @ take(blocks(v), pairs % num), pairs, num).flatten(1, 2)

    def sums(weights, pairs, num, _):
        return scatter(weights.sum(2)[..., None], pairs, num).flatten(1)

    def largest(logits, pairs, num, _):
        best = logits.amax(2)  # (G, M, b)
        top = best.new_full((len(best), num, BLOCK), -1e5)
        for g in range(len(best)):
            for m, row in enumerate((pairs[g] // num).tolist()):
                top[g, row] = torch.maximum(top[g, row], best[g, m])
        return top.flatten(1), take(top, pairs // num)[:, :, None]

    def mask_of_keys(mask, pairs):
        return take(mask.reshape(len(mask), -1, BLOCK), pairs % (mask.shape[1] // BLOCK))

    def operator(function):
        return types.SimpleNamespace(operator_call=function)

    return {
        "SampledDenseMM": operator(sampled),
        "SparseDenseMM": operator(times_values),
        "ReduceSum": operator(sums),
        "sparse_max": largest,
        "sparse_mask_B": mask_of_keys,
    }


def mra_values(clone):
    """Attend with and without padding, by both modes, with and without priors."""
    import math

    file = clone / "old_code/LRA/encoders/mra2_kernel/attention.py"
    names = ["get_low_resolution_logit", "get_block_idxes", "mra2_attention"]
    released = cut_out(file, names, math=math, **operators())["mra2_attention"]
    draw = np.random.default_rng(1)
    values = {name: draw.normal(size=(2, 1, 24, 3)).round(2) for name in "qkv"}
    values["pad"] = np.arange(24) < np.array([[21], [11]])
    q, k, v = (torch.from_numpy(values[name]) for name in "qkv")
    for padded in (False, True):
        mask = torch.from_numpy(values["pad"]) if padded else torch.ones(2, 24)
        for mode in ("full", "sparse"):
            for first, diagonal in ((0, 0), (1, 1)):
                case = f"{'pad' if padded else 'none'}/{mode}/first{first}_diagonal{diagonal}"
                values[case] = released(
                    q, k, v, mask.double(), 5, mode, BLOCK, first, diagonal
                ).numpy()
    return values


if __name__ == "__main__":
    wavspa, mra = map(Path, sys.argv[1:])
    np.savez_compressed(HERE / "wavspa.npz", **wavspa_values(wavspa))
    np.savez_compressed(HERE / "mra.npz", **mra_values(mra))
