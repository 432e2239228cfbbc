"""The available backends, by name."""

from torch import nn

from models.bigbird import BigBird
from models.ema import EMA
from models.fourier import Fourier
from models.fourier_space import FourierSpace
from models.gated_delta import GatedDelta
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
from models.ssd import SSD
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
    "ssd": SSD,
    "gated_delta": GatedDelta,
}
