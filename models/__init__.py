"""Networks of the suite: one attention backend per file, and the encoder that takes any of them.

A backend is built as `ATTENTION[name](shape, **options)` and called as `backend(x, mask)`, with
`x` `(B, N, D)` and `mask` `(B, N)` bool (True = real token) or None when every token is real;
it returns `(B, N, D)`. What is under the mask, be it NaN, never changes the output at real
positions, nor gradients; `HeadProjections.split` takes the mask to see to that.
`backend.pad_invariant` says whether the *amount* of padding leaves it unchanged too,
`backend.memory_growth` the power of N that memory grows with, and `backend.reference(x, mask)` is
its plain form. `lra/contract.py` checks all of it.
"""

from torch import nn

from models.bigbird import BigBird
from models.ema import EMA
from models.fourier import Fourier
from models.fourier_space import FourierSpace
from models.linear import Linear
from models.linformer import Linformer
from models.longformer import Longformer
from models.lru import LRU
from models.mega import Mega
from models.mra import MRA, MRASparse
from models.nystromformer import Nystromformer
from models.performer import Performer
from models.reformer import Reformer
from models.s4d import S4D
from models.s5 import S5
from models.softmax import Softmax
from models.wavspa import WavSpA

ATTENTION: dict[str, type[nn.Module]] = {
    "softmax": Softmax,
    "fourier": Fourier,
    "wavspa": WavSpA,
    "fourier_space": FourierSpace,
    "mra": MRA,
    "mra_sparse": MRASparse,
    "linear": Linear,
    "nystromformer": Nystromformer,
    "linformer": Linformer,
    "longformer": Longformer,
    "performer": Performer,
    "bigbird": BigBird,
    "reformer": Reformer,
    "s4d": S4D,
    "s5": S5,
    "lru": LRU,
    "ema": EMA,
    "mega": Mega,
}
