"""The protocols of state-space layers against a second transcription of what was published."""

import csv
import math
import re
from typing import Any

import pytest
import torch

from lra.build import build_model, num_parameters
from lra.compose import load
from lra.config import Config
from lra.optimiser import optimiser_for, roles
from lra.paths import CONFIGS, PUBLISHED, ROOT

# Layers, width, norm, its place, mixing, dropout, pair's classifier, batch, steps, warm-up, rate,
# kernel's rate, its roles, undecayed, weight decay.
S4_UNDECAYED = "dt,A,B,bias,norm,embedding"
TABLE = f"""
s4       listops    6 256 batch after  glu       0   -   32 120000 12000 .01   .001  A,B {S4_UNDECAYED} .05
s4       text       6 256 batch before glu       0   -   16  50000  5000 .01   .001  A,B {S4_UNDECAYED} .05
s4       retrieval  6 256 batch before glu       0   256 64  45960  5000 .01   .001  A,B {S4_UNDECAYED} .05
s4       image      6 512 batch after  glu       .1  -   50 180000 18000 .01   .001  dt,A,B,C {S4_UNDECAYED} .05
s4       pathfinder 6 256 batch before glu       0   -   64 500000 50000 .004  .001  dt,A,B,C {S4_UNDECAYED} .05
s4       pathx      6 256 batch before glu       0   -   16 500000 50000 .001  .001  dt,A,B,C {S4_UNDECAYED} .05
s4_small image      4 128 batch before glu       .1  -   50  90000  4500 .01   .001  dt,A,B,C {S4_UNDECAYED} .01
s5       listops    8 128 batch before half_glu2 0   -   50  76800  1920 .003  .001  dt,A   dt,A   .04
s5       text       6 256 batch before half_glu2 .1  -   50  17500     1 .004  .001  A,B    A,B    .07
s5       retrieval  6 128 batch before half_glu1 0   128 32  91920  4596 .002  .001  A,B    A,B    .05
s5       image      6 512 batch before half_glu1 .1  -   50 225000   900 .0045 .001  dt,A   dt,A   .07
s5       pathfinder 6 192 batch before half_glu1 .05 -   64 500000  2500 .0045 .0009 dt,A,B dt,A,B .03
s5       pathx      6 128 batch before half_glu1 0   -   32 375000  5000 .0018 .0006 dt,A,B dt,A   .06
lru      listops    6 128 batch before glu       0   -   32  80000  8000 .004  .002  A,B    A,B    .05
lru      text       6 256 batch before glu       .1  -   32  50000  5000 .004  .0004 A,B    A,B    .05
lru      retrieval  6 128 batch before glu       .1  128 64 100000 10000 .004  .002  A,B    A,B    .05
lru      image      6 512 batch before glu       .1  -   50 180000 18000 .004  .001  A,B    A,B    .05
lru      pathfinder 6 192 batch before glu       0   -   64 500000 50000 .004  .001  A,B    A,B    .05
lru      pathx      6 128 batch before half_glu1 0   -   32 250000 25000 .004  .001  A,B    A,B    .05
mega     listops    6  80 layer after  mlp       .1  160 64  90000  3000 .001  -     dt,A,B -      .01
mega     text       4 128 scale after  mlp       .1  256 50  25000 10000 .004  -     dt,A,B -      .01
mega     retrieval  6 128 scale after  mlp       .1  256 64  91960 10000 .003  -     dt,A,B -      .04
mega     image      8 160 batch before mlp       0   320 50 180000  9000 .01   -     dt,A,B -      .02
mega     pathfinder 6 128 batch before mlp       0   256 128 250000 50000 .01  -     dt,A,B -      .01
mega     pathx      4  64 batch before mlp       0   128 128 125000 25000 .01  -     dt,A,B -      .01
"""  # noqa: E501
ROWS = {(p, t): rest for p, t, *rest in (line.split() for line in TABLE.strip().splitlines())}
BACKEND = {"s4": "s4d", "s4_small": "s4d", "s5": "s5", "lru": "lru", "mega": "mega"}
# Betas and epsilon, clipping, schedule, GELU, initial values, last norm, tied dropout.
OF_ALL: dict[str, tuple[Any, ...]] = {
    "s4": (0.9, 0.999, 1e-8, 0.0, "half_cosine", "exact", "torch", None, True),
    "s4_small": (0.9, 0.999, 1e-8, 0.0, "half_cosine", "exact", "torch", True, False),
    "s5": (0.9, 0.999, 1e-8, 0.0, "half_cosine", "tanh", "lecun", False, True),
    "lru": (0.9, 0.999, 1e-8, 0.0, "half_cosine", "tanh", "lecun", False, True),
    "mega": (0.9, 0.98, 1e-8, 1.0, "linear", "exact", "mega", None, False),
}
TASKS = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
every_cell = pytest.mark.parametrize(("protocol", "task"), ROWS)


def recipe(protocol: str, task: str, *words: str) -> Config:
    backend = f"attention={BACKEND[protocol]}"
    return load(f"protocol={protocol}", f"task={task}", backend, *words)


def test_the_table_has_every_recipe() -> None:
    found = {
        (protocol, file.stem)
        for protocol in BACKEND
        for file in (CONFIGS / "protocol" / "task" / protocol).glob("*.yaml")
    }
    assert found - {(protocol, "custom") for protocol in BACKEND} == set(ROWS)


@every_cell
def test_model_and_training_are_as_published(protocol: str, task: str) -> None:
    config, row = recipe(protocol, task), ROWS[protocol, task]
    model, train = config.model, config.train
    assert [model.layers, model.dim] == [int(value) for value in row[:2]]
    assert [model.norm, model.norm_place, model.channel_mixing] == row[2:5]
    assert model.dropout == float(row[5])
    assert model.classifier_dims == ([] if row[6] == "-" else [int(row[6])])
    assert [train.batch_size, train.steps, train.warmup_steps] == [int(v) for v in row[7:10]]
    assert train.learning_rate == float(row[10])
    assert train.kernel_learning_rate == (None if row[11] == "-" else float(row[11]))
    assert train.kernel_roles == row[12].split(",")
    assert train.undecayed == ([] if row[13] == "-" else row[13].split(","))
    assert train.weight_decay == float(row[14])
    *optimiser, schedule, gelu, initialisation, last_norm, tied = OF_ALL[protocol]
    assert [train.beta1, train.beta2, train.epsilon, train.clip_norm] == optimiser
    if (protocol, task) != ("s4", "retrieval"):
        assert train.schedule == schedule
    if last_norm is None:
        # With a norm before every layer, the output of the last one has none.
        last_norm = model.norm_place == "before"
    found = [model.gelu, model.initialisation, model.last_norm, model.tied_dropout]
    assert found == [gelu, initialisation, last_norm, tied]
    assert (model.positions, model.pooling, model.zero_is_padding) == ("none", "mean", False)
    assert train.warmup_power == (2 if (protocol, task) == ("mega", "pathx") else 1)
    # torch's default; the release of S5 has shares of .05 and .1.
    share = 0.05 if protocol == "s5" and task not in ("pathfinder", "pathx") else 0.1
    assert (model.norm_momentum, model.norm_padding) == (share, False)


@every_cell
def test_pixels_are_grey_values_and_the_rest_symbols(protocol: str, task: str) -> None:
    model = recipe(protocol, task).model
    if task in ("image", "pathfinder", "pathx"):
        assert model.inputs == "values"
        image = (0.48, 0.24) if protocol == "mega" else (122.6 / 255, 61 / 255)
        # From 0 to 1 in S4, from -1 to 1 in the others.
        expected = image if task == "image" else (0, 1) if protocol == "s4" else (0.5, 0.5)
        assert (model.value_mean, model.value_std) == pytest.approx(expected, abs=1e-6)
    else:
        assert model.inputs == "tokens"
        expected_std = (model.dim if protocol in ("s4", "mega") else model.vocab_size) ** -0.5
        if (protocol, task) == ("s5", "listops"):
            # A one-hot vector of 20 symbols there.
            expected_std = 20**-0.5
        assert model.embedding_std == pytest.approx(expected_std, rel=2e-3)


@every_cell
def test_rates_follow_the_closed_formula_in_every_group(protocol: str, task: str) -> None:
    config = recipe(protocol, task)
    train = config.train
    with torch.device("meta"):
        model = build_model(config)
    optimiser, schedule = optimiser_for(model, train)
    optimiser.step()
    w, last = train.warmup_steps, train.steps - 1
    # S4's Retrieval stops before the end of its schedule.
    end = 50_000 if (protocol, task) == ("s4", "retrieval") else train.steps
    for step in sorted({1, w // 2, w, w + 1, last // 2, last} - {0}):
        schedule.last_epoch = step - 1
        schedule.step()
        progress = (step - w) / (end - w)
        if step < w:
            factor = (step / w) ** train.warmup_power
        elif protocol == "mega":
            factor = 1 - progress
        else:
            factor = math.cos(math.pi * progress / 2) ** 2
        for group in optimiser.param_groups:
            expected = group["initial_lr"] * factor
            assert group["lr"] == pytest.approx(expected, rel=1e-6, abs=1e-15), step


@every_cell
def test_every_parameter_is_in_the_group_of_its_role(protocol: str, task: str) -> None:
    config, row = recipe(protocol, task), ROWS[protocol, task]
    with torch.device("meta"):
        model = build_model(config)
    found = {
        id(parameter): (group["initial_lr"], group["weight_decay"])
        for group in optimiser_for(model, config.train)[0].param_groups
        for parameter in group["params"]
    }
    own = roles(model)
    assert len(found) == len(own) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        slow = row[11] != "-" and own[name] in row[12].split(",")
        decay = 0.0 if own[name] in row[13].split(",") else float(row[14])
        assert found[id(parameter)] == (float(row[11] if slow else row[10]), decay), name


# Every option of a protocol's layers, and those that a task sets.
STEPS = {"step_min": 0.001, "step_max": 0.1}
S4D_LAYER = {"discretisation": "zoh", "step_transform": "softplus", "bidirectional": True, **STEPS}
EVERY_OPTION: dict[str, dict[str, Any]] = {
    "s4": {**S4D_LAYER, "init": "legs"},
    "s4_small": {**S4D_LAYER, "init": "lin"},
    "s5": {"bidirectional": True, "clip": False, "as_released": False, **STEPS},
    "lru": {"bidirectional": False, "max_phase": 2 * math.pi, "as_released": False},
    "mega": {
        **{"states": 16, "values": None, "queries": 64, "truncation": 1024, "chunk": None},
        **{"bidirectional": True, "weighting": "softmax", "norm": "none", "dropout": 0.1},
    },
}
PIXELS_OF_MEGA = {"weighting": "laplace", "norm": "batch", "dropout": 0.0}
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("s4", "listops"): {"states": 4, "copies": 1},
    ("s4", "text"): {"states": 4, "copies": 1},
    ("s4", "retrieval"): {"states": 4, "copies": 1},
    ("s4", "image"): {"states": 64, "copies": 1},
    ("s4", "pathfinder"): {"states": 64, "copies": None},
    ("s4", "pathx"): {"states": 64, "copies": None, "step_min": 0.0001},
    ("s4_small", "image"): {"states": 64, "copies": None},
    ("s5", "listops"): {"states": 16, "blocks": 8, "c_init": "lecun_normal"},
    ("s5", "text"): {"states": 192, "blocks": 12, "c_init": "lecun_normal"},
    ("s5", "retrieval"): {"states": 256, "blocks": 16, "c_init": "trunc_standard_normal"},
    ("s5", "image"): {"states": 384, "blocks": 3, "c_init": "lecun_normal", "clip": True},
    ("s5", "pathfinder"): {"states": 256, "blocks": 8, "c_init": "trunc_standard_normal"},
    ("s5", "pathx"): {"states": 256, "blocks": 16, "c_init": "complex_normal", "step_min": 0.0001},
    ("lru", "listops"): {"states": 256, "r_min": 0.0, "r_max": 0.99},
    ("lru", "text"): {"states": 192, "r_min": 0.5, "r_max": 0.9},
    ("lru", "retrieval"): {"states": 256, "r_min": 0.5, "r_max": 0.9},
    ("lru", "image"): {"states": 384, "r_min": 0.9, "r_max": 0.999},
    ("lru", "pathfinder"): {"states": 256, "r_min": 0.9, "r_max": 0.999, "bidirectional": True},
    ("lru", "pathx"): {
        **{"states": 256, "r_min": 0.999, "r_max": 0.9999, "max_phase": math.pi / 10},
        "bidirectional": True,
    },
    ("mega", "listops"): {},
    ("mega", "text"): {},
    ("mega", "retrieval"): {},
    ("mega", "image"): {**PIXELS_OF_MEGA, "queries": 96},
    ("mega", "pathfinder"): PIXELS_OF_MEGA,
    ("mega", "pathx"): {**PIXELS_OF_MEGA, "queries": 32, "truncation": 4096},
}


@every_cell
def test_the_layer_has_the_published_options_and_no_others(protocol: str, task: str) -> None:
    found = recipe(protocol, task).attention.options
    assert found == EVERY_OPTION[protocol] | OPTIONS[protocol, task]


@every_cell
def test_sequences_are_as_long_as_published(protocol: str, task: str) -> None:
    config = recipe(protocol, task)
    released = (2002, 4002, 4002) if protocol == "mega" else (2048, 4096, 4000)
    longest = dict(zip(TASKS, (*released, 1024, 1024, 16_384), strict=True))[task]
    assert config.model.max_length == longest
    # All expressions are shorter than 2,000.
    assert config.task.truncate in ({longest, 2000} if task == "listops" else {longest})


@pytest.mark.parametrize(
    ("protocol", "task", "words", "parameters"),
    [
        # 267K and 3.96M in the table of the Image ablation.
        ("s4_small", "image", [], 267_018),
        ("s4_small", "image", ["model.layers=6", "model.dim=512"], 3_957_770),
    ],
)
def test_s4d_has_exactly_the_published_parameters(
    protocol: str, task: str, words: list[str], parameters: int
) -> None:
    config = recipe(protocol, task, *words)
    assert num_parameters(build_model(config)) == parameters
    # The formula of its table: dt, A and B, two C, D, the gate, two vectors of a norm.
    width, layers = config.model.dim, config.model.layers
    modes = config.attention.options["states"] // 2
    layer = width + 4 * width * modes + 4 * width * modes + width
    layer += 2 * width * (width + 1) + 2 * width
    assert parameters == 2 * width + layers * layer + 2 * width + 10 * (width + 1)


def test_the_gate_aims_at_the_published_accuracies_on_validation() -> None:
    with open(PUBLISHED, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["family"] == "S4 suite (Image ablation)"]
    found = {row["method"]: row["value"] for row in rows if row["method"].startswith("S4D (Lin)")}
    header = (CONFIGS / "protocol" / "s4_small.yaml").read_text()
    assert found["S4D (Lin), small"] in header and found["S4D (Lin), large"] in header


def test_the_documentation_shows_the_parameters_of_the_headers() -> None:
    text = (ROOT / "docs" / "protocols.md").read_text()
    for protocol in BACKEND:
        [line] = re.findall(rf"^\| `{protocol}` \| \w+ \| ([\d,|\s-]+) \|$", text, re.M)
        shown = [number.strip() for number in line.split("|")]
        for task, number in zip(TASKS, shown, strict=True):
            file = CONFIGS / "protocol" / "task" / protocol / f"{task}.yaml"
            assert file.exists() == (number != "-")
            assert number == "-" or f"# Parameters: {number} with" in file.read_text()


def test_chunked_mega_has_the_published_parameters() -> None:
    """2.82M with chunks of 128, as the Image ablation counted Mega's own code."""
    config = recipe("mega", "image", "attention.options.chunk=128")
    assert num_parameters(build_model(config)) == 2_824_760


def test_with_a_norm_before_it_mega_has_the_norm_inside_for_its_residual() -> None:
    for task, inside in (("image", True), ("text", False)):
        model = build_model(
            recipe("mega", task, "model.layers=1", "model.max_length=64", "task.truncate=64")
        )
        [block] = model.encoder.blocks
        assert (block.attention.norm is not None) == inside
        assert (sum(p.numel() for p in block.attention_norm.parameters()) == 0) == inside
        softmax = load("protocol=mega", f"task={task}", "attention=softmax").model
        assert softmax.attention_norm


def test_dropout_in_s4_acts_three_times_per_layer() -> None:
    from models.dropout import Dropout, TiedDropout

    for protocol, tied in (("s4", 2), ("s4_small", 0)):
        words = ["model.layers=1", "model.dim=32", "model.heads=1"]
        block = build_model(recipe(protocol, "image", *words)).encoder.blocks[0]
        found = [m for m in block.modules() if isinstance(m, Dropout)]
        assert [m.p for m in found] == [0.1] * 3
        assert sum(isinstance(m, TiedDropout) for m in found) == tied


@pytest.mark.parametrize("protocol", BACKEND)
def test_a_small_cell_of_the_protocol_learns_its_batch(protocol: str) -> None:
    words = ["scale=mini", "model.layers=1", "model.dim=32", "model.heads=1", "model.mlp_dim=32"]
    config = recipe(protocol, "image", *words)
    model = build_model(config)
    optimiser, _ = optimiser_for(model, config.train)
    tokens = torch.randint(0, 256, (8, 64), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8)
    losses = []
    for _ in range(30):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
