"""The contract of a backend, as checks: pytest runs them on the registry, `lra.check` on any.

A backend is an `nn.Module` built as `Backend(shape, *, options...)` and called as
`backend(x, mask)`, with `x` `(B, N, D)` and `mask` `(B, N)` bool (True = real token) or None; it
returns `(B, N, D)`. By a class attribute or a property it must also state

* `pad_invariant`: whether its output at real positions is independent of the amount of padding;

and it may state the following, without which the check that needs it is skipped:

* `reference(x, mask)`: its plain form, a method that computes the same from the same parameters;
* `memory_growth`: the power of N with which the memory of a training step grows, such as 1 or 2;
* `graph_break`: why `torch.compile` cannot keep it in one graph, if it cannot;
* `thread_safe`: whether several threads may call it at once, which holds if its forward keeps
  nothing on the module between its lines and draws random numbers only by `models.randomness`; it
  is not inherited, as a subclass has another forward.

Every check is a function of a `Subject`; the first line of its docstring is its sentence. Axes: B
batch, H heads, N length, K head width, D model width.
"""

import copy
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lra import side_by_side
from lra.memory import PeakMemory
from models.encoder import Attention, pad_invariant
from models.heads import AttentionShape, HeadProjections
from models.randomness import seeded

# The length of most inputs, and the length of the padding that is added to it.
LENGTH, MORE = 37, 19
SMALL = AttentionShape(dim=16, heads=2, head_dim=8, max_length=64)
# A size that hardly any other axis has, so that an axis of heads can be recognised.
MANY_HEADS = 11
# Number of threads that call a backend at once, and number of calls.
THREADS, CALLS = 3, 12
# Lengths at which memory is measured, and how far its power may be from the claimed one.
GROWING = (512, 1024, 2048)
POWER_TOLERANCE = 0.2


class BrokenError(AssertionError):
    """A backend breaks its contract; the message says how in one line."""


class SkippedError(Exception):
    """A check does not apply to a backend; the message says why."""


@dataclass(frozen=True)
class Subject:
    """A backend with its options, as checks build it.

    Args:
        make: Builds the backend from a shape.
        shape: Sizes; `max_length` is at least 56.
    """

    make: Attention
    shape: AttentionShape = SMALL

    def build(self, *, seed: int = 1, **sizes: Any) -> nn.Module:
        """Build the backend for evaluation, with parameters drawn from a seed.

        Parameters that start as zeros are drawn too: behind an output projection of zeros, nothing
        else would show.

        Args:
            seed: Seed of the parameters.
            sizes: Fields of the shape to replace.
        """
        torch.manual_seed(seed)
        backend = self.make(replace(self.shape, **sizes)).eval()
        for parameter in backend.parameters():
            if parameter.requires_grad and parameter.numel() and not parameter.any():
                nn.init.normal_(parameter, std=0.1)
        return backend

    def inputs(self, length: int = LENGTH) -> tuple[Tensor, Tensor]:
        """Return x `(3, length, D)`, and a mask with padding, a hole, and one all-real sequence."""
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(3, length, self.shape.dim, generator=generator)
        mask = torch.ones(3, length, dtype=torch.bool)
        mask[0, -(-3 * length // 4) :] = False
        mask[1, 5:6] = False
        mask[1, -(-length // 2) :] = False
        return x, mask


Check = Callable[[Subject], None]
Attend = Callable[[Tensor, Tensor | None], Tensor]


def sentence(check: Callable[..., None]) -> str:
    """Return a check's sentence, or its name if Python runs without docstrings."""
    return (check.__doc__ or check.__name__.replace("_", " ")).splitlines()[0].rstrip(".")


def shape_and_type(subject: Subject) -> None:
    """The output has the shape and the type of the input at any length and width of a head."""
    backend = subject.build()
    for length in (1, 2, 7, 31, LENGTH, subject.shape.max_length):
        x, mask = subject.inputs(length)
        for given in (None, mask):
            _check_output(backend(x, given), x, f"at N={length}")
    width = subject.shape.head_dim + 1
    try:
        wider = subject.build(head_dim=width)
    except ValueError:
        # It says that it needs another width.
        return
    x, mask = subject.inputs()
    _check_output(wider(x, mask), x, f"with heads x head_dim = {subject.shape.heads} x {width}")


def _check_output(output: object, x: Tensor, where: str) -> None:
    if not isinstance(output, Tensor):
        raise BrokenError(f"a {type(output).__name__} {where}, not a tensor")
    for key in ("shape", "dtype", "device"):
        there, wanted = getattr(output, key), getattr(x, key)
        if there != wanted:
            raise BrokenError(f"{key} {_plain(there)} {where}, not {_plain(wanted)}")
    if not output.isfinite().all():
        raise BrokenError(f"values that are not finite {where}")


def masked_content(subject: Subject) -> None:
    """Content under the mask never changes the output at real positions."""
    backend, (x, mask) = subject.build(), subject.inputs()
    expected = backend(x, mask)[mask]
    for kind, filled in _other_padding(x, mask):
        _near(backend(filled, mask)[mask], expected, 1e-6, f"with {kind} under the mask, outputs")


def masked_gradient(subject: Subject) -> None:
    """Content under the mask gets no gradient from real positions, and changes no gradient."""
    backend, (x, mask) = subject.build(), subject.inputs()
    expected = _gradients(backend(x.requires_grad_(), mask)[mask], [x, *backend.parameters()])
    if expected[0][~mask].any():
        largest = expected[0][~mask].abs().max()
        raise BrokenError(f"a gradient of up to {largest:.1e} under the mask")
    if not expected[0][mask].any():
        raise BrokenError("the gradient of the input is zero")
    for kind, filled in _other_padding(x.detach(), mask):
        inputs = [filled.requires_grad_(), *backend.parameters()]
        for found, wanted in zip(
            _gradients(backend(filled, mask)[mask], inputs, f"with {kind} under the mask, "),
            expected,
            strict=True,
        ):
            _near(found, wanted, 1e-5, f"with {kind} under the mask, gradients")


def _other_padding(x: Tensor, mask: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a description of other content, and `x` with that content under the mask."""
    kinds = {
        "large numbers": 100 * torch.randn_like(x),
        "huge numbers": 1e12 * torch.randn_like(x),
    }
    kinds |= {f"{value}": torch.full_like(x, value) for value in (math.nan, math.inf, -math.inf)}
    for kind, content in kinds.items():
        yield kind, torch.where(mask[..., None], x, content)


def no_mask(subject: Subject) -> None:
    """A mask of real tokens only is equivalent to no mask."""
    backend, (x, mask) = subject.build(), subject.inputs()
    _near(backend(x, torch.ones_like(mask)), backend(x, None), 1e-5, "outputs")


def all_padding(subject: Subject) -> None:
    """A sequence of padding alone gives finite values and gradients."""
    backend, (x, mask) = subject.build(), subject.inputs()
    mask[2] = False
    output = backend(x.requires_grad_(), mask)
    if not output.isfinite().all():
        raise BrokenError("values that are not finite")
    _gradients(output, [x, *backend.parameters()])


def padding(subject: Subject) -> None:
    """More padding changes the output if and only if pad_invariant is False."""
    backend, (x, mask) = subject.build(), subject.inputs()
    try:
        claim = pad_invariant(backend)
    except ValueError as error:
        raise BrokenError(str(error)) from error
    wide = torch.cat([x, torch.randn(len(x), MORE, x.shape[-1])], 1)
    wide_mask = torch.cat([mask, torch.zeros(len(x), MORE, dtype=torch.bool)], 1)
    narrow, padded = backend(x, mask)[mask], backend(wide, wide_mask)[:, :LENGTH][mask]
    if claim:
        _near(padded, narrow, 2e-6, "pad_invariant is True, but outputs")
    elif _difference(padded, narrow) <= 2e-6:
        raise BrokenError(
            "pad_invariant is False, but more padding changed nothing; if it were True, batches"
            " could be trimmed to their longest sequence"
        )


def batch_permutation(subject: Subject) -> None:
    """Permuting the batch permutes the output, and each sequence alone has the same."""
    backend, (x, mask) = subject.build(), subject.inputs()
    order, whole = torch.tensor([2, 0, 1]), backend(x, mask)
    _near(backend(x[order], mask[order]), whole[order], 1e-5, "outputs")
    for one in map(slice, range(len(x)), range(1, len(x) + 1)):
        alone = backend(x[one], mask[one])
        if alone.shape != x[one].shape:
            raise BrokenError(f"shape {_plain(alone.shape)} for a batch of one sequence")
        _near(alone[mask[one]], whole[one][mask[one]], 1e-5, "of a sequence alone, outputs")


def head_permutation(subject: Subject) -> None:
    """Permuting the heads leaves the output as it is."""
    if not any(isinstance(m, HeadProjections) for m in subject.build().modules()):
        raise SkippedError("no HeadProjections inside to permute")
    backend = subject.build(heads=MANY_HEADS).double()
    x, mask = subject.inputs()
    expected = backend(x.double(), mask)[mask]
    order = torch.randperm(MANY_HEADS, generator=torch.Generator().manual_seed(3))
    permute_heads(backend, subject.build(heads=MANY_HEADS + 1), order)
    _near(backend(x.double(), mask)[mask], expected, 1e-9, "outputs")


def permute_heads(backend: nn.Module, other: nn.Module, order: Tensor) -> None:
    """Permute the heads of a backend in place.

    In every `HeadProjections` inside, the rows and columns of each head are moved; in other
    parameters and buffers, every axis whose size is the number of heads of both backends.

    Args:
        backend: A backend with `len(order)` heads.
        other: The same backend with another number of heads.
        order: The new order of the heads `(H,)`.
    """
    heads, projected = len(order), set()
    with torch.no_grad():
        for module in backend.modules():
            if isinstance(module, HeadProjections):
                shape = module.num_inputs, heads, module.head_dim
                place = torch.arange(module.qkv.out_features).view(shape)
                for tensor in module.qkv.parameters():
                    tensor.copy_(tensor[place[:, order].flatten()])
                module.out.weight.copy_(module.out.weight[:, place[0, order].flatten()])
                projected |= {id(tensor) for tensor in module.parameters()}
        tensors = [[*each.parameters(), *each.buffers()] for each in (backend, other)]
        for mine, theirs in zip(*tensors, strict=True):
            if id(mine) in projected:
                continue
            sizes = zip(mine.shape, theirs.shape, strict=True)
            for axis in [n for n, (size, another) in enumerate(sizes) if size == heads != another]:
                mine.copy_(mine.index_select(axis, order))


def determinism(subject: Subject) -> None:
    """The same seed and input give bitwise equal outputs and gradients."""
    x, mask = subject.inputs()
    runs = []
    for _ in range(2):
        backend = subject.build()
        inputs = [x.clone().requires_grad_(), *backend.parameters()]
        output = backend(inputs[0], mask)
        runs.append([backend(x, mask), output, *_gradients(output[mask], inputs)])
    if not torch.equal(runs[0][0], runs[0][1]):
        raise BrokenError("a second call gives different outputs")
    if not all(map(torch.equal, *runs)):
        raise BrokenError(
            "a second instance from the same seed gives different outputs or gradients"
        )


def untouched_inputs(subject: Subject) -> None:
    """The input and the mask are left as they were."""
    backend, (x, mask) = subject.build(), subject.inputs()
    before = x.clone(), mask.clone()
    with torch.no_grad():
        backend(x, mask)
    for name, now, then in zip(("x", "mask"), (x, mask), before, strict=True):
        if not torch.equal(now, then):
            raise BrokenError(f"{name} is overwritten")


def bfloat16(subject: Subject) -> None:
    """Under bfloat16 autocast, outputs stay near float32 and gradients stay finite."""
    _bfloat16_on("cpu", subject)


def _bfloat16_on(device: str, subject: Subject) -> None:
    backend, (x, mask) = subject.build().to(device), subject.inputs()
    x, mask = x.to(device), mask.to(device)
    exact = backend(x, mask)[mask]
    with torch.autocast(device, torch.bfloat16):
        rounded = backend(x.requires_grad_(), mask)[mask]
    if rounded.dtype not in (torch.float32, torch.bfloat16):
        raise BrokenError(f"the output is {_plain(rounded.dtype)}, not float32 or bfloat16")
    error = float(((rounded.float() - exact).norm() / exact.norm()).detach())
    if not error < 0.03:
        raise BrokenError(f"outputs differ by {error:.1%} of their norm; at most 3.0% is allowed")
    _gradients(rounded.float(), [x, *backend.parameters()])


def dropout(subject: Subject) -> None:
    """Dropout acts in training, and only there; values and gradients are finite."""
    without, backend = subject.build(), subject.build(dropout=0.5)
    x, mask = subject.inputs()
    kept = without(x, mask)
    _near(backend(x, mask), kept, 0.0, "in evaluation, outputs with and without it")
    output = backend.train()(x.requires_grad_(), mask)
    if not output.isfinite().all():
        raise BrokenError("values that are not finite in training")
    _gradients(output, [x, *backend.parameters()])
    if torch.equal(output[mask], without.train()(x, mask)[mask]):
        if not any(map(_drops, backend.modules())):
            raise SkippedError("it has no dropout")
        raise BrokenError("with dropout=0.5, outputs in training equal those without it")


def training(subject: Subject) -> None:
    """In training, content under the mask changes nothing, and the same seed gives the same."""
    backend, (x, mask) = subject.build(dropout=0.1).train(), subject.inputs()

    def called(x: Tensor, mask: Tensor | None) -> Tensor:
        torch.manual_seed(5)
        # Of a copy, as calls in training may change buffers.
        output: Tensor = copy.deepcopy(backend)(x, mask)
        return output

    expected = called(x, mask)[mask]
    if not torch.equal(called(x, mask)[mask], expected):
        raise BrokenError(
            "outputs differ although the seed is the same: draw random numbers from torch's"
            " generator, or by models.randomness"
        )
    for kind, filled in _other_padding(x, mask):
        _near(called(filled, mask)[mask], expected, 1e-6, f"with {kind} under the mask, outputs")
    if not called(x, None).isfinite().all():
        raise BrokenError("values that are not finite without a mask")


def _drops(module: nn.Module) -> bool:
    """Return whether a module is a dropout layer, or states that it has dropout."""
    probability = module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0)
    return isinstance(probability, float) and probability > 0


def threads(subject: Subject) -> None:
    """Threads that call it at once get the same results as each gets alone."""
    backend = subject.build(dropout=0.1).train()
    if unsafe := side_by_side.unsafe_classes(backend):
        raise SkippedError(
            f"{' and '.join(unsafe)}: no thread_safe = True, or hooks, so one thread at a time"
            " calls it"
        )
    x, mask = subject.inputs()
    random = torch.get_rng_state()

    def called(number: int) -> list[Tensor]:
        length = LENGTH - number % 8
        inputs = [x[:, :length].clone().requires_grad_(), *backend.parameters()]
        with seeded(number):
            output = backend(inputs[0], mask[:, :length])
        return [output, *_gradients(output, inputs)]

    with side_by_side.threads_set(1):
        alone = [called(number) for number in range(CALLS)]
    with (
        side_by_side.threads_set(THREADS),
        closing(side_by_side.in_order(called, range(CALLS))) as results,
    ):
        together = list(results)
    if not torch.equal(random, torch.get_rng_state()):
        raise BrokenError("it draws from torch's generator; use models.randomness.draw_seed")
    for one, other in zip(chain(*alone), chain(*together), strict=True):
        if not torch.equal(one, other):
            raise BrokenError("outputs or gradients differ: what is kept on the module?")


def state_round_trip(subject: Subject) -> None:
    """A state_dict carries everything from one instance to another with a different seed."""
    backend, other = subject.build(), subject.build(seed=4)
    x, mask = subject.inputs()
    with torch.no_grad():
        # What it keeps between calls must not outlive a change of its parameters.
        other(x, mask)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(copy.deepcopy(backend.state_dict()))
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            same = torch.equal(backend(x, mask), other(x, mask))
        if not same:
            raise BrokenError(
                "loaded into another instance, it gives different outputs: is a random tensor"
                " neither a parameter nor a buffer? Is something kept from an earlier call?"
            )


def all_parameters_learn(subject: Subject) -> None:
    """Every parameter receives a gradient."""
    backend, (x, mask) = subject.build(), subject.inputs()
    learning = {name: p for name, p in backend.named_parameters() if p.requires_grad}
    gradients = _gradients(backend(x, mask)[mask], learning.values())
    silent = [name for name, g in zip(learning, gradients, strict=True) if not g.any()]
    if silent:
        raise BrokenError(f"no gradient for {', '.join(silent)}")


def plain_form(subject: Subject) -> None:
    """The output and all gradients equal those of the plain form."""
    backend = subject.build().double()
    reference = getattr(backend, "reference", None)
    if reference is None:
        raise SkippedError("it has no reference(x, mask)")
    for length in (1, LENGTH):
        x, mask = subject.inputs(length)
        for given in (None, mask):
            _same(backend, backend, reference, x.double(), given, 1e-9, f" at N={length}")


def memory_growth(subject: Subject) -> None:
    """The memory of a training step grows with N as claimed."""
    claim = getattr(subject.build(), "memory_growth", None)
    if claim is None:
        raise SkippedError("it has no memory_growth (1 or 2, the power of N)")
    try:
        backends = [subject.build(max_length=length) for length in GROWING]
    except ValueError as error:
        raise SkippedError(f"cannot be built for long sequences: {error}") from error
    peaks = [
        _training_peak(backend, *subject.inputs(length))
        for backend, length in zip(backends, GROWING, strict=True)
    ]
    # If memory is a + b N^p, its differences between doubled lengths have the ratio 2^p.
    power = math.log2((peaks[2] - peaks[1]) / (peaks[1] - peaks[0]))
    if not abs(power - claim) < POWER_TOLERANCE:
        measured = ", ".join(
            f"{p / 2**20:.1f} MiB at {n}" for n, p in zip(GROWING, peaks, strict=True)
        )
        raise BrokenError(f"claims {claim:g}, but the power is {power:.2f}: {measured}")


def _training_peak(backend: nn.Module, x: Tensor, mask: Tensor) -> int:
    """Return the peak bytes of the tensors for the first sequence, a quarter of it padding."""
    x, mask = x[:1], mask[:1]
    with PeakMemory(x, mask, *backend.parameters(), *backend.buffers()) as memory:
        output = backend(x.requires_grad_(), mask)
        _gradients(output, [x, *backend.parameters()])
    peak: int = memory.peak
    return peak


def compiles(subject: Subject) -> None:
    """torch.compile keeps it in one graph that gives the same results."""
    if shutil.which("g++") is None:
        raise SkippedError("no C++ compiler g++, which torch.compile needs")
    backend, (x, mask) = subject.build(), subject.inputs()
    reason = getattr(backend, "graph_break", None)
    with warnings.catch_warnings():
        # The compiler's own modules use deprecated parts of torch, and it warns of complex numbers.
        warnings.simplefilter("ignore")
        if reason is not None and _one_graph(backend, x, mask):
            raise BrokenError(f"graph_break states {reason!r}, but it fits into one graph")
        torch.compiler.reset()
        compiled = torch.compile(backend, fullgraph=reason is None)
        _same(backend, compiled, backend, x, mask, 1e-3)
    if reason is not None:
        raise SkippedError(f"it states why not: {reason}; in pieces the results are the same")


def _one_graph(backend: nn.Module, x: Tensor, mask: Tensor) -> bool:
    # Imported here, as it takes seconds.
    from torch._dynamo.exc import TorchDynamoException

    torch.compiler.reset()
    try:
        # Tracing alone decides on breaks, so nothing has to be compiled.
        torch.compile(backend, fullgraph=True, backend="eager")(x, mask)
    except TorchDynamoException:
        return False
    return True


def other_device(subject: Subject) -> None:
    """It computes on the device of its input, and waits for no contents."""
    backend, (x, mask) = subject.build(), subject.inputs()
    if (reason := getattr(backend, "graph_break", None)) is not None:
        raise SkippedError(f"it states a graph_break: {reason}")
    # Tensors on this device have no contents.
    backend.to("meta")(x.to("meta"), mask.to("meta"))


def gpu(subject: Subject) -> None:
    """A GPU gives the same results and gradients as the CPU, and autocasts to bfloat16."""
    if not torch.cuda.is_available():
        raise SkippedError("no CUDA device")
    backend, (x, mask) = subject.build(), subject.inputs()
    outputs, gradients = [], []
    for device in ("cpu", "cuda"):
        backend.to(device)
        here = x.detach().to(device).requires_grad_()
        output = backend(here, mask.to(device))[mask.to(device)]
        outputs.append(output.detach().cpu())
        found = _gradients(output, [here, *backend.parameters()])
        gradients.append([gradient.cpu() for gradient in found])
    _near(outputs[1], outputs[0], 1e-4, "outputs")
    names = ["x", *(name for name, p in backend.named_parameters() if p.requires_grad)]
    for name, expected, actual in zip(names, *gradients, strict=True):
        _near(actual, expected, 1e-3, f"gradients of {name}")
    _bfloat16_on("cuda", subject)


CHECKS: tuple[Check, ...] = (
    shape_and_type,
    masked_content,
    masked_gradient,
    no_mask,
    all_padding,
    padding,
    batch_permutation,
    head_permutation,
    determinism,
    untouched_inputs,
    bfloat16,
    dropout,
    training,
    threads,
    state_round_trip,
    all_parameters_learn,
    plain_form,
    memory_growth,
    compiles,
    other_device,
    gpu,
)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value if that is over 1."""
    scale = max(1.0, float(expected.detach().abs().max()))
    return float((actual - expected).detach().abs().max()) / scale


def _near(actual: Tensor, expected: Tensor, most: float, what: str) -> None:
    # Written so that a NaN difference is not near either.
    if not (difference := _difference(actual, expected)) <= most:
        raise BrokenError(f"{what} differ by {difference:.1e}; at most {most:.1e} is allowed")


def _same(
    backend: nn.Module,
    form: Attend,
    expected: Attend,
    x: Tensor,
    mask: Tensor | None,
    most: float,
    where: str = "",
) -> None:
    """Compare two forms of a backend at real positions: outputs, and the gradients of all inputs.

    Raises:
        BrokenError: They differ by more than `most`.
    """
    inputs = [x.detach().requires_grad_(), *backend.parameters()]
    real = torch.ones_like(x[..., 0], dtype=torch.bool) if mask is None else mask
    results = [compute(inputs[0], mask)[real] for compute in (form, expected)]
    _near(results[0], results[1], most, f"outputs{where}")
    names = ["x", *(name for name, p in backend.named_parameters() if p.requires_grad)]
    pairs = zip(*(_gradients(result, inputs) for result in results), strict=True)
    for name, (ours, plain) in zip(names, pairs, strict=True):
        _near(ours, plain, most, f"gradients of {name}{where}")


def _gradients(output: Tensor, inputs: Iterable[Tensor], where: str = "") -> list[Tensor]:
    """Return the gradients of the sum of squares, with zeros for missing ones.

    Raises:
        BrokenError: A gradient is not finite.
    """
    inputs = [tensor for tensor in inputs if tensor.requires_grad]
    if not inputs or not output.requires_grad:
        return [torch.zeros_like(tensor) for tensor in inputs]
    found = torch.autograd.grad(output.square().sum(), inputs, materialize_grads=True)
    if not all(gradient.isfinite().all() for gradient in found):
        raise BrokenError(f"{where}gradients that are not finite")
    return list(found)


def _plain(value: object) -> str:
    return str(tuple(value) if isinstance(value, torch.Size) else value).removeprefix("torch.")
