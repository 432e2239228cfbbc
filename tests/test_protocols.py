"""The protocols against the publications: every value, schedule, length, mask and initial value.

The tables are an independent transcription of the released configurations and scripts, not of our
files.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor, nn

from lra.batches import Batches
from lra.build import batches_for, build_model, build_task, num_parameters
from lra.compose import load
from lra.config import Config, TrainConfig
from lra.optimiser import optimiser_for
from lra.paths import CONFIGS
from lra.tasks import Split

# Layers, width, heads, width of q, k and v, MLP, truncated length, padded length, vocabulary,
# positions, pooling, hidden layers of the classifier, dropout, attention dropout, zero is padding.
MODELS = """
lra           listops    4 512 8 512 1024  2000  2000  17 sinusoidal cls         1024    .1 .1 no
lra           text       4 256 4 256 1024  1000  1000 257 sinusoidal cls         1024    .1 .1 no
lra           retrieval  4 128 4 128  512  4000  4000 257 sinusoidal first       512,256 .1 .1 no
lra           image      1 128 8  64  128  1024  1024 256 learned    cls         128     .3 .2 yes
lra           pathfinder 4  32 4  16   32  1024  1024 256 sinusoidal mean_all    32      .2 .1 yes
lra           pathx      1  32 2  16   32 16384 16384 256 learned    mean_all    32      .1 .1 yes
nystromformer listops    2  64 2  64  128  2000  2048  32 learned    mean_padded 128     .1 .1 no
nystromformer text       2  64 2  64  128  4000  4096 512 learned    mean_padded 128     .1 .1 no
nystromformer retrieval  2  64 2  64  128  4000  4096 512 learned    mean_padded 128     .1 .1 no
nystromformer image      2  64 2  64  128  1024  1024 512 learned    mean_padded 128     .1 .1 yes
nystromformer pathfinder 2  64 2  64  128  1024  1024 512 learned    mean_padded 128     .1 .1 yes
wavspa        listops    8 128 1  64  128  2000  2000  17 sinusoidal cls         128     .1 .1 no
wavspa        text       6 256 1 256 1024  4096  4096 257 sinusoidal cls         1024    .1 .1 no
wavspa        retrieval  6 256 1 128  256  4000  4000 257 sinusoidal first       256,128 .1 .1 no
wavspa        image      8 128 1  64  128  1024  1024 256 learned    mean_all    128     .3 .2 yes
wavspa        pathfinder 1 128 8  64  128  1024  1024 256 sinusoidal mean_all    128     .2 .1 yes
"""
# Batch, steps, learning rate, warm-up, schedule, its period, weight decay, updates between
# validations, maximum norm of the gradient.
TRAINING = """
lra           listops     32   5000 .05   1000 rsqrt         0 .1   50 0
lra           text        32  20000 .05   8000 rsqrt         0 .1  100 0
lra           retrieval   32   5000 .05   8000 rsqrt         0 .1  100 0
lra           image      256  35000 5e-4   175 cosine    35000  0  175 0
lra           pathfinder 512  62400 1e-3   312 cosine    62400  0  312 0
lra           pathx       64 500000 1e-3  2500 cosine   500000  0 2500 1
nystromformer listops     32   5000 1e-4  1000 one_cycle     0  0   50 0
nystromformer text        32  20000 1e-4  8000 one_cycle     0  0  500 0
nystromformer retrieval   32  30000 1e-4   800 one_cycle     0  0  300 0
nystromformer image      256  35000 1e-4   175 one_cycle     0  0  175 0
nystromformer pathfinder 256  62400 1e-4   312 one_cycle     0  0  312 0
wavspa        listops    400  80000 .05   1000 rsqrt         0 .1  100 0
wavspa        text       128  50000 .05   6250 rsqrt         0 .1  500 0
wavspa        retrieval   64  50000 .05   2500 rsqrt         0 .1  500 0
wavspa        image      400 200000 5e-4 10000 cosine    35000  0  500 0
wavspa        pathfinder 512 500000 1e-3  2500 cosine    32000  0  500 0
"""
# Betas, epsilon, precision; attention biases, standard deviation of the token table, epsilon of the
# norms, GELU, initial values, norm before the MLP, padding cleared, features of a pair.
OF_ALL = {
    "lra": "(.9, .98) 1e-9 float32 False 1 1e-6 tanh flax True False concat",
    "nystromformer": "(.9, .999) 1e-6 float16_on_gpu True .02 1e-5 exact torch True False nli",
    "wavspa": "(.9, .98) 1e-9 float32 False 1 1e-6 tanh flax False True concat",
}


def rows(table: str) -> dict[tuple[str, str], list[str]]:
    lines = [line.split() for line in table.strip().splitlines()]
    return {(protocol, task): values for protocol, task, *values in lines}


CELLS = list(rows(MODELS))
every_cell = pytest.mark.parametrize(("protocol", "task"), CELLS)


def recipe(protocol: str, task: str, *overrides: str) -> Config:
    return load(f"protocol={protocol}", f"task={task}", *overrides)


def test_the_tables_have_every_recipe_that_was_published() -> None:
    files = {file: file.read_text() for file in (CONFIGS / "protocol" / "task").glob("*/*.yaml")}
    # Such as Path-X in the small model.
    ours = {file for file, text in files.items() if "# Source: this project" in text}
    recipes = {(file.parent.name, file.stem) for file in files.keys() - ours}
    # The recipes of state-space layers are in tests/test_ssm_protocols.py.
    recipes = {(protocol, task) for protocol, task in recipes if protocol in OF_ALL}
    assert recipes == set(CELLS) == set(rows(TRAINING))


@every_cell
def test_the_model_is_the_published_one(protocol: str, task: str) -> None:
    config = recipe(protocol, task)
    model = config.model
    found = [model.layers, model.dim, model.heads, model.heads * model.head_dim, model.mlp_dim]
    found += [config.task.truncate, model.max_length, model.vocab_size]
    expected = rows(MODELS)[protocol, task]
    assert found == [int(value) for value in expected[:8]]
    hidden = ",".join(str(width) for width in model.classifier_dims)
    assert [model.positions, model.pooling, hidden] == expected[8:11]
    assert [model.dropout, model.attention_dropout] == [float(value) for value in expected[11:13]]
    assert model.zero_is_padding == (expected[13] == "yes")
    common = OF_ALL[protocol].split()
    assert [str(model.attention_bias), model.embedding_std, model.norm_epsilon, model.gelu] == [
        common[4],
        float(common[5]),
        float(common[6]),
        common[7],
    ]
    switches = [model.initialisation, str(model.mlp_norm), str(model.clear_padding)]
    assert switches == common[8:11]
    assert model.position_std == 0.02
    if task == "retrieval":
        assert model.pair_features == common[11]


@every_cell
def test_the_training_is_the_published_one(protocol: str, task: str) -> None:
    train = recipe(protocol, task).train
    found: list[Any] = [train.batch_size, train.steps, train.learning_rate, train.warmup_steps]
    found += [train.schedule, train.cycle_steps, train.weight_decay, train.validate_every]
    found += [train.clip_norm]
    expected = rows(TRAINING)[protocol, task]
    assert [str(v) if isinstance(v, str) else float(v) for v in found] == [
        v if v.isidentifier() else float(v) for v in expected
    ]
    first, second, epsilon, precision = OF_ALL[protocol].split()[:4]
    betas = float(first.strip("(,")), float(second.strip(")"))
    # One cycle changes beta 1 and ignores the one that was given.
    assert train.beta2 == betas[1] and (train.schedule == "one_cycle" or train.beta1 == betas[0])
    assert (train.epsilon, train.precision) == (float(epsilon), precision)
    optimiser, _ = optimiser_for(nn.Linear(2, 2), train)
    [group] = optimiser.param_groups
    assert type(optimiser) is torch.optim.AdamW
    assert (group["betas"][1], group["eps"]) == (betas[1], float(epsilon))
    assert group["weight_decay"] == train.weight_decay


def one_cycle(t: int, train: TrainConfig) -> float:
    """Return the rate on two straight lines: a 25th of the peak, the peak, a 250,000th of it."""
    top, peak = train.warmup_steps - 1, train.learning_rate
    if t <= top:
        return peak / 25 + (peak - peak / 25) * t / top
    return peak + (peak / 25e4 - peak) * (t - top) / (train.steps - 1 - top)


def rsqrt(t: int, train: TrainConfig) -> float:
    w = train.warmup_steps
    return train.learning_rate * (t / w if t < w else 1) / math.sqrt(w if t < w else t)


def cosine(t: int, train: TrainConfig) -> float:
    w, period = train.warmup_steps, train.cycle_steps
    if t < w:
        return train.learning_rate * t / w
    return train.learning_rate * math.cos(math.pi * ((t - w) % period) / period / 2) ** 2


FORMULAS: dict[str, Callable[[int, TrainConfig], float]] = {
    "one_cycle": one_cycle,
    "rsqrt": rsqrt,
    "cosine": cosine,
}


def rate_at(step: int, train: TrainConfig) -> float:
    """Return the learning rate of the schedule at an update, counted from 0."""
    optimiser, schedule = optimiser_for(nn.Linear(2, 2), train)
    optimiser.step()
    if step > 0:
        # Every schedule depends on the step alone, so the steps in between can be left out.
        schedule.last_epoch = step - 1
        schedule.step()
    rate: float = optimiser.param_groups[0]["lr"]
    return rate


@every_cell
def test_the_rate_of_an_update_follows_the_closed_formula(protocol: str, task: str) -> None:
    train = recipe(protocol, task).train
    warmup, last = train.warmup_steps, train.steps - 1
    chosen = {0, 1, warmup - 1, warmup, warmup + 1, last // 3, last // 2, last}
    chosen |= {train.cycle_steps + warmup, train.cycle_steps + warmup - 1}
    for step in sorted(step for step in chosen if step <= last):
        expected = FORMULAS[train.schedule](step, train)
        assert rate_at(step, train) == pytest.approx(expected, rel=1e-6, abs=1e-15), step


@pytest.mark.parametrize(
    ("protocol", "task", "step", "rate"),
    [
        ("lra", "listops", 1000, 1.58e-3),
        ("lra", "text", 8000, 5.59e-4),
        ("lra", "retrieval", 4999, 3.49e-4),
        ("lra", "image", 175, 5e-4),
        ("nystromformer", "listops", 0, 4e-6),
        ("nystromformer", "listops", 999, 1e-4),
        ("nystromformer", "listops", 4999, 4e-10),
        ("wavspa", "text", 6250, 6.32e-4),
        ("wavspa", "retrieval", 2500, 1e-3),
        # After the warm-up and a period of 32,000, the cosine restarts.
        ("wavspa", "pathfinder", 34_500, 1e-3),
    ],
)
def test_the_rate_matches_the_published_figure(
    protocol: str, task: str, step: int, rate: float
) -> None:
    train = recipe(protocol, task).train
    assert rate_at(step, train) == pytest.approx(rate, rel=3e-3)


def formula(config: Config, classes: int, rank: int = 0, projections: int = 4) -> int:
    """Count the parameters of a plain transformer of the flax code from its sizes."""
    m = config.model
    inner, length = m.heads * m.head_dim, m.max_length + (m.pooling == "cls")
    attention = projections * m.dim * inner + length * rank
    mlp = 2 * m.dim * m.mlp_dim + m.mlp_dim + m.dim
    norms = 2 * m.dim * (2 * m.layers + 1)
    table = m.vocab_size * m.dim + (m.dim if m.pooling == "cls" else 0)
    table += length * m.dim if m.positions == "learned" else 0
    head, width = 0, m.dim * config.task.sequences
    for out in (*m.classifier_dims, classes):
        head, width = head + (width + 1) * out, out
    return table + m.layers * (attention + mlp) + norms + head


@pytest.mark.parametrize(
    ("task", "parameters"),
    [("listops", 8_948_746), ("retrieval", 1_087_618), ("image", 248_458), ("pathx", 537_954)],
)
def test_the_formula_gives_the_published_number_of_parameters(task: str, parameters: int) -> None:
    config = recipe("lra", task)
    assert formula(config, config.task.num_classes) == parameters


# From the released configurations: layers, width, heads, width of q, k and v, MLP, dropout,
# pooling.
OTHER_BACKENDS = {
    ("image", "longformer"): (4, 128, 4, 64, 128, 0.3, "mean_all"),
    ("image", "bigbird"): (1, 128, 4, 64, 128, 0.3, "cls"),
    ("image", "performer"): (1, 128, 8, 64, 128, 0.3, "cls"),
    ("image", "linformer"): (1, 128, 8, 64, 128, 0.3, "cls"),
    ("image", "linear"): (1, 128, 8, 64, 128, 0.3, "cls"),
    ("pathfinder", "linear"): (1, 128, 2, 64, 128, 0.2, "mean_all"),
    ("pathfinder", "performer"): (4, 32, 8, 16, 32, 0.2, "mean_all"),
    ("pathfinder", "linformer"): (1, 32, 2, 16, 32, 0.2, "mean_all"),
    ("pathfinder", "longformer"): (2, 32, 2, 16, 32, 0.1, "mean_all"),
    ("pathfinder", "bigbird"): (4, 64, 2, 32, 64, 0.2, "mean_all"),
    # Released as 32 for q, k and v, which the published attention replaces by the model's width.
    ("image", "reformer"): (4, 64, 8, 64, 64, 0.3, "cls"),
    ("pathfinder", "reformer"): (2, 64, 8, 64, 64, 0.2, "mean_all"),
    ("listops", "reformer"): (4, 512, 8, 512, 1024, 0.1, "cls"),
    ("listops", "linformer"): (4, 512, 8, 512, 1024, 0.1, "cls"),
    ("text", "performer"): (4, 256, 4, 256, 1024, 0.1, "cls"),
    ("retrieval", "bigbird"): (4, 128, 4, 128, 512, 0.1, "first"),
}


@pytest.mark.parametrize(("task", "attention"), OTHER_BACKENDS)
def test_other_backends_have_the_model_that_long_range_arena_gave_them(
    task: str, attention: str
) -> None:
    config = recipe("lra", task, f"attention={attention}")
    m = config.model
    found = (m.layers, m.dim, m.heads, m.heads * m.head_dim, m.mlp_dim, m.dropout, m.pooling)
    assert found == OTHER_BACKENDS[task, attention]
    rank = 16 if attention == "linformer" else 0
    # Reformer's queries are its keys; the projection of its output is a deviation.
    projections = 3 if attention == "reformer" else 4
    expected = formula(config, config.task.num_classes, rank, projections)
    assert num_parameters(build_model(config)) == expected


@pytest.mark.parametrize("task", ["listops", "text", "retrieval", "image", "pathfinder"])
def test_reformer_has_one_round_of_ten_buckets_and_ten_chunks(task: str) -> None:
    config = recipe("lra", task, "attention=reformer")
    length = config.model.max_length + (config.model.pooling == "cls")
    # The published code appends zeros up to the next multiple of ten, or ten to a multiple.
    filled = length + 10 - length % 10
    options = config.attention.options
    chunk_length = options["chunk_length"]
    assert (options["num_hashes"], options["num_buckets"]) == (1, 10)
    assert chunk_length == filled // 10 and math.ceil(length / chunk_length) == 10


@pytest.mark.parametrize(
    ("protocol", "task", "attention", "options"),
    [
        ("lra", "text", "performer", {"features": "relu_plain"}),
        # Settings for a task and a backend override settings for the backend.
        ("lra", "listops", "performer", {"features": "favor", "num_features": 2, "epsilon": 1e-6}),
        ("lra", "listops", "linformer", {"rank": 16, "per_head": False, "shared": True}),
        ("lra", "image", "longformer", {"window": 512, "num_global": 0}),
        ("lra", "image", "bigbird", {"block_size": 64, "random_blocks": 3}),
        ("wavspa", "text", "performer", {"features": "relu"}),
        ("wavspa", "text", "linformer", {"rank": 128, "per_head": False}),
        ("wavspa", "text", "longformer", {"window": 512, "num_global": 0}),
        ("wavspa", "listops", "wavspa", {"wavelet": "ada", "wlen": 40, "channel_reverse": True}),
        ("wavspa", "text", "wavspa", {"wavelet": "ada", "wlen": 16, "channel_reverse": True}),
        ("nystromformer", "text", "linformer", {"rank": 256, "per_head": True}),
        ("nystromformer", "text", "nystromformer", {"landmarks": 64, "conv": 35}),
        ("nystromformer", "text", "performer", {"features": "favor", "num_features": 256}),
        ("nystromformer", "text", "longformer", {"window": 64, "num_global": 1}),
        ("nystromformer", "text", "bigbird", {"block_size": 32, "random_blocks": 2}),
        ("nystromformer", "text", "reformer", {"num_hashes": 2, "chunk_length": 64}),
    ],
)
def test_a_backend_has_the_options_of_the_protocol(
    protocol: str, task: str, attention: str, options: dict[str, Any]
) -> None:
    found = recipe(protocol, task, f"attention={attention}").attention.options
    assert {key: found[key] for key in options} == options


# First and diagonal blocks, and whether blocks are tiles, of MRA-2 and MRA-2-s.
PRIORS = {
    "listops": ((1, 0), (1, 0), None),
    "text": ((1, 1), (1, 1), None),
    "retrieval": ((1, 1), (1, 1), None),
    "image": ((1, 0), (0, 1), [32, 32]),
    "pathfinder": ((1, 0), (1, 1), [32, 32]),
}


@pytest.mark.parametrize("task", PRIORS)
def test_mra_has_its_published_priors_and_budget(task: str) -> None:
    *priors, shape = PRIORS[task]
    for attention, expected in zip(("mra", "mra_sparse"), priors, strict=True):
        options = recipe("nystromformer", task, f"attention={attention}").attention.options
        assert (options["first_blocks"], options["diagonal_blocks"]) == expected
        assert (options["blocks_per_row"], options["block_size"]) == (8, 32)
        assert (options["input_shape"], options["tile"]) == (shape, [4, 8])


@pytest.mark.parametrize(
    ("protocol", "widths"),
    [("lra", [256, 512, 256, 2]), ("nystromformer", [256, 128, 2]), ("wavspa", [512, 256, 128, 2])],
)
def test_the_head_of_retrieval_has_the_published_layers(protocol: str, widths: list[int]) -> None:
    head = build_model(recipe(protocol, "retrieval")).head
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    assert [linear[0].in_features, *(layer.out_features for layer in linear)] == widths
    assert [type(layer) for layer in head[1::2]] == [nn.ReLU] * (len(linear) - 1)


@pytest.mark.parametrize(
    ("protocol", "task", "real", "padded"),
    [
        ("lra", "text", 1000, 1000),
        ("nystromformer", "text", 4000, 4096),
        ("wavspa", "text", 4096, 4096),
        ("lra", "retrieval", 4000, 4000),
        ("nystromformer", "retrieval", 4000, 4096),
        ("nystromformer", "listops", 2000, 2048),
    ],
)
def test_a_long_example_is_cut_and_padded_to_the_published_lengths(
    protocol: str, task: str, real: int, padded: int
) -> None:
    config = recipe(protocol, task)
    per_example = config.task.sequences
    offsets = np.arange(per_example + 1, dtype=np.int64) * 9000
    tokens = np.full(per_example * 9000, 1, dtype=np.uint8)
    batches = Batches(
        Split(tokens, offsets, np.zeros(1, dtype=np.int64)),
        padded_length=config.model.max_length,
        truncate=config.task.truncate,
        id_shift=0,
        trim=False,
        device=torch.device("cpu"),
    )
    [batch] = batches.once(1)
    assert batch.tokens.shape[-1] == padded
    assert (batch.tokens != 0).sum(-1).unique().tolist() == [real]
    if real < padded:
        assert batch.mask is not None and torch.equal(batch.mask, batch.tokens != 0)


@every_cell
def test_black_pixels_are_masked_and_other_zeros_are_not(protocol: str, task: str) -> None:
    sizes = ["model.max_length=64", "task.truncate=64", "model.layers=1"]
    config = recipe(protocol, task, *sizes)
    tokens = np.random.default_rng(0).integers(0, 3, 3 * config.task.sequences * 64, np.uint8)
    offsets = np.arange(3 * config.task.sequences + 1, dtype=np.int64) * 64
    split = Split(tokens, offsets, np.zeros(3, dtype=np.int64))
    [batch] = batches_for(config, build_task(config), build_model(config), split).once(3)
    if task in ("image", "pathfinder", "pathx"):
        assert batch.mask is not None and not batch.mask.all()
        assert torch.equal(batch.mask, batch.tokens != 0)
    else:
        assert batch.mask is None


def kurtosis(values: Tensor) -> float:
    """Return the fourth moment over the squared second: 3 for a normal, 1.8 for a uniform."""
    values = values.detach().double().flatten()
    return float(values.pow(4).mean() / values.square().mean().square())


def assert_normal(values: Tensor, std: float) -> None:
    assert values.std().item() == pytest.approx(std, rel=0.03)
    assert kurtosis(values) == pytest.approx(3, abs=0.15)


def assert_uniform(values: Tensor, bound: float) -> None:
    assert 0.97 * bound < values.abs().max().item() <= bound * (1 + 1e-6)
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert kurtosis(values) == pytest.approx(1.8, abs=0.1)


def assert_norms_are_neutral(model: nn.Module) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    assert norms
    for norm in norms:
        assert (norm.weight == 1).all() and (norm.bias == 0).all()


@pytest.mark.parametrize("task", ["listops", "image", "retrieval"])
@pytest.mark.parametrize("attention", ["softmax", "mra"])
def test_nystromformer_starts_with_normal_tables_and_as_torch_does_elsewhere(
    task: str, attention: str
) -> None:
    model = build_model(recipe("nystromformer", task, f"attention={attention}"))
    embedding = model.encoder.embedding
    assert_normal(embedding.positions, 0.02)
    assert embedding.tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert kurtosis(embedding.tokens.weight) == pytest.approx(3, abs=0.4)
    assert embedding.cls is None
    assert_norms_are_neutral(model)
    for block in model.encoder.blocks:
        projections = block.attention.projections
        # W_q, W_k, W_v and the output: 64 inputs each.
        for kernel in (*projections.qkv.weight.chunk(3), projections.out.weight):
            assert_uniform(kernel, 1 / 8)
        assert 0.1 < projections.qkv.bias.abs().max() <= 1 / 8
        assert_uniform(block.mlp[0].weight, 64**-0.5)
        assert_uniform(block.mlp[3].weight, 128**-0.5)
    assert_uniform(model.head[0].weight, model.head[0].in_features ** -0.5)
    assert 0 < model.head[2].bias.abs().max() <= 128**-0.5


@pytest.mark.parametrize(
    ("protocol", "task"),
    [("lra", "listops"), ("lra", "image"), ("lra", "retrieval"), ("wavspa", "listops")],
)
def test_the_flax_protocols_start_xavier_uniform_and_their_heads_lecun_normal(
    protocol: str, task: str
) -> None:
    config = recipe(protocol, task)
    model, sizes = build_model(config), config.model
    embedding = model.encoder.embedding
    assert embedding.tokens.weight.std().item() == pytest.approx(1, rel=0.05)
    assert kurtosis(embedding.tokens.weight) == pytest.approx(3, abs=0.3)
    if sizes.positions == "learned":
        assert_normal(embedding.positions, 0.02)
    else:
        assert not isinstance(embedding.positions, nn.Parameter)
    if sizes.pooling == "cls":
        assert (embedding.cls == 0).all()
    assert_norms_are_neutral(model)
    inner = sizes.heads * sizes.head_dim
    for block in model.encoder.blocks:
        projections = block.attention.projections
        for kernel in (*projections.qkv.weight.chunk(3), projections.out.weight):
            assert_uniform(kernel, (6 / (sizes.dim + inner)) ** 0.5)
        assert projections.qkv.bias is None and projections.out.bias is None
        for layer in (block.mlp[0], block.mlp[3]):
            assert_uniform(layer.weight, (6 / (sizes.dim + sizes.mlp_dim)) ** 0.5)
            assert layer.bias.std().item() == pytest.approx(1e-6, rel=0.3)
    for layer in model.head[::2]:
        inputs = layer.in_features
        if layer.weight.numel() > 10_000:
            assert layer.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.03)
            # A normal that is cut at two standard deviations.
            assert kurtosis(layer.weight) == pytest.approx(2.37, abs=0.1)
        assert layer.weight.abs().max() <= 2 * inputs**-0.5 / 0.87962 + 1e-6
        assert (layer.bias == 0).all()


def test_attention_biases_of_the_wavspa_protocol_start_near_zero() -> None:
    for attention in ("linear", "linformer"):
        model = build_model(recipe("wavspa", "text", f"attention={attention}"))
        for block in model.encoder.blocks:
            projections = block.attention.projections
            for bias in (projections.qkv.bias, projections.out.bias):
                assert bias.std().item() == pytest.approx(1e-6, rel=0.3)


def test_wavspa_starts_from_daubechies_filters_or_from_random_angles() -> None:
    for task, order in {"listops": 20, "text": 8, "image": 20, "pathfinder": 20}.items():
        model = build_model(recipe("wavspa", task, "attention=wavspa"))
        taps = torch.tensor(pywt.Wavelet(f"db{order}").dec_lo)
        for block in model.encoder.blocks:
            filters = block.attention.transform.dec_lo
            assert filters.requires_grad
            torch.testing.assert_close(filters, taps[:, None].expand_as(filters))
            assert len(block.attention.bands) == 2
    ortho = recipe("wavspa", "text", "attention=wavspa", "attention.options.wavelet=ortho")
    angles = torch.cat([b.attention.transform.thetas for b in build_model(ortho).encoder.blocks])
    assert_uniform(angles - math.pi, math.pi)
