import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir

from lra.build import build_attention, build_model, build_task, num_parameters
from lra.compose import load, recorded
from lra.config import ConfigError, bind, comparable, config_hash
from lra.paths import CONFIGS
from lra.tasks.registry import TASKS
from models import ATTENTION

SCALES = [path.stem for path in (CONFIGS / "scale").glob("*.yaml")]
PROTOCOLS = [path.stem for path in (CONFIGS / "protocol").glob("*.yaml")]
RECIPES = [
    (protocol, path.stem)
    for protocol in PROTOCOLS
    for path in sorted((CONFIGS / "protocol" / "task" / protocol).glob("*.yaml"))
    # A user's own task is tested in tests/test_custom_task.py.
    if path.stem != "custom"
]


def every_cell() -> Iterator[Any]:
    """Yield every cell; those that no file of their own sets apart from a quick one are slow."""
    of_protocol = CONFIGS / "protocol"
    for protocol, task in RECIPES:
        for attention in ATTENTION:
            own = of_protocol / "task_attention" / protocol / f"{task}_{attention}.yaml"
            of_all = of_protocol / "attention" / protocol / f"{attention}.yaml"
            first = task == "listops" and (protocol == "nystromformer" or of_all.exists())
            quick = attention == "softmax" or own.exists() or first
            for scale in SCALES:
                # The default protocol is tested at all scales, the others at the paper scale.
                by_default = quick and (scale == "paper" or protocol == "nystromformer")
                marks = () if by_default else (pytest.mark.slow,)
                yield pytest.param(protocol, task, attention, scale, marks=marks)


@pytest.mark.parametrize(("protocol", "task", "attention", "scale"), list(every_cell()))
def test_every_cell_of_every_protocol_and_scale_can_be_built(
    protocol: str, task: str, attention: str, scale: str
) -> None:
    config = load(
        f"protocol={protocol}", f"task={task}", f"attention={attention}", f"scale={scale}"
    )
    assert (config.task.name, config.attention.name) == (task, attention)
    assert (config.protocol.name, config.scale) == (protocol, scale)
    build_task(config)
    with torch.device("meta"):
        build_model(config)


# Computed with the published code.
PARAMETERS = {
    ("nystromformer", "listops"): 209_802,
    ("nystromformer", "text"): 370_562,
    ("nystromformer", "retrieval"): 395_138,
    ("nystromformer", "image"): 174_986,
    ("nystromformer", "pathfinder"): 173_954,
    ("lra", "listops"): 8_948_746,
    ("lra", "text"): 3_486_722,
    ("lra", "retrieval"): 1_087_618,
    ("lra", "image"): 248_458,
    ("lra", "pathfinder"): 26_530,
    ("lra", "pathx"): 537_954,
    ("wavspa", "listops"): 851_850,
    ("wavspa", "text"): 6_658_562,
    ("wavspa", "retrieval"): 2_657_666,
    ("wavspa", "image"): 1_013_386,
    ("wavspa", "pathfinder"): 153_730,
}


@pytest.mark.parametrize(("protocol", "task"), RECIPES)
def test_a_model_has_as_many_parameters_as_the_published_one(protocol: str, task: str) -> None:
    header = (CONFIGS / "protocol" / "task" / protocol / f"{task}.yaml").read_text()
    [(figure, backend, mra)] = re.findall(
        r"^# Parameters: ([\d,]+) with (\w+)(, and with MRA)?\.$", header, re.M
    )
    for attention in [backend, *(["mra", "mra_sparse"] if mra else [])]:
        config = load(f"protocol={protocol}", f"task={task}", f"attention={attention}")
        parameters = num_parameters(build_model(config))
        if (protocol, task) in PARAMETERS:
            assert parameters == PARAMETERS[protocol, task], attention
        assert f"{parameters:,}" == figure


def test_the_table_of_parameters_shows_the_published_numbers() -> None:
    protocols = ("nystromformer", "lra", "wavspa")
    order = ("listops", "text", "retrieval", "image", "pathfinder", "pathx")
    text = (CONFIGS.parent / "docs" / "protocols.md").read_text()
    lines = [line.strip("|").split("|") for line in text.splitlines() if "| published |" in line]
    shown = [[number.strip() for number in line[3:]] for line in lines]
    assert shown == [
        [f"{PARAMETERS[p, task]:,}" if (p, task) in PARAMETERS else "-" for task in order]
        for p in protocols
    ]
    ours = [line for line in text.splitlines() if "| ours" in line]
    for protocol, line, numbers in zip(
        ("nystromformer", "lra", "wavspa"), ours, shown, strict=True
    ):
        assert protocol in line and all(n in line for n in numbers if n != "-")


@pytest.mark.parametrize(
    ("task", "overrides", "parameters"),
    [
        ("text", ["attention.options.wavelet=ortho"], 6_646_274),
        # 49,152 fewer than published: the filters that its lifting has and never uses.
        (
            "text",
            ["attention.options.wavelet=lift53", "attention.options.level=3"],
            9_828_866 - 49_152,
        ),
        (
            "image",
            ["model.layers=1", "model.heads=8", "model.head_dim=8", "model.pooling=cls"],
            286_090,
        ),
        (
            "image",
            [
                "model.dim=160",
                "model.head_dim=320",
                "model.mlp_dim=320",
                "model.classifier_dims=[320]",
                "model.pooling=cls",
            ],
            4_413_770,
        ),
        (
            "pathfinder",
            [
                "model.layers=6",
                "model.heads=1",
                "model.head_dim=128",
                "model.mlp_dim=256",
                "model.classifier_dims=[256]",
            ],
            1_280_770,
        ),
    ],
)
def test_wavspa_has_the_published_parameters_in_its_other_configurations_too(
    task: str, overrides: list[str], parameters: int
) -> None:
    config = load("protocol=wavspa", f"task={task}", "attention=wavspa", *overrides)
    assert num_parameters(build_model(config)) == parameters


def test_every_task_and_backend_has_its_file() -> None:
    assert {path.stem for path in (CONFIGS / "task").glob("*.yaml")} == {*TASKS, "custom"}
    assert {path.stem for path in (CONFIGS / "attention").glob("*.yaml")} >= set(ATTENTION)


def test_yaml_names_every_option_of_a_backend_with_its_default() -> None:
    for name, backend in ATTENTION.items():
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            options = compose(f"attention/{name}").attention.options
        defaults: dict[str, Any] = backend.__init__.__kwdefaults__ or {}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items()}
        # Options added later are in comments: a value would be part of the cells' hashes.
        text = (CONFIGS / "attention" / f"{name}.yaml").read_text()
        later = dict(re.findall(r"^  # (\w+): (\S+)$", text, re.MULTILINE))
        named = dict(options) | {key: yaml.safe_load(value) for key, value in later.items()}
        assert named == {k: v for k, v in plain.items() if k != "inner"}, name
        assert not set(later) & set(options)


def leaves(file: Path) -> dict[str, Any]:
    """Return the values of a file by dotted key."""

    def walk(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                yield from walk(value, f"{prefix}{key}.")
            elif prefix or key != "defaults":
                yield f"{prefix}{key}", value

    return dict(walk(yaml.safe_load(file.read_text()) or {}, ""))


def test_no_file_is_empty() -> None:
    for file in CONFIGS.rglob("*.yaml"):
        assert yaml.safe_load(file.read_text()), file


# The file of what a choice sets for all tasks, and the folder of what it sets for each.
SHARED = {
    **{
        f"protocol/{name}.yaml": f"protocol/task/{name}"
        for name in PROTOCOLS
        # That one is for a single task.
        if name != "s4_small"
    },
    **{f"scale/every_task/{name}.yaml": f"scale/task/{name}" for name in SCALES if name != "paper"},
}


@pytest.mark.parametrize("shared", SHARED)
def test_settings_that_all_tasks_share_are_written_once(shared: str) -> None:
    common = leaves(CONFIGS / shared)
    own = [leaves(file) for file in (CONFIGS / SHARED[shared]).glob("*.yaml")]
    assert len(own) > 1 and common
    for key in set.intersection(*(set(values) for values in own)):
        assert len({str(values[key]) for values in own}) > 1, f"{key} is the same for every task"
    for values in own:
        assert not [key for key in values if common.get(key) == values[key]]


@pytest.mark.parametrize("scale", sorted(set(SCALES) - {"paper"}))
@pytest.mark.parametrize("task", TASKS)
def test_a_task_without_a_file_for_a_scale_is_refused_instead_of_trained_in_full(
    copied_configs: Path, task: str, scale: str
) -> None:
    words = [f"task={task}", f"scale={scale}"]
    assert load(*words).train.steps < load(f"task={task}").train.steps
    (copied_configs / "scale" / "task" / scale / f"{task}.yaml").unlink()
    with pytest.raises(ConfigError, match=f"Could not find 'scale/task/{scale}/{task}'"):
        load(*words)


def test_a_new_scale_is_refused_until_it_has_a_file_for_the_task(copied_configs: Path) -> None:
    text = "# @package _global_\nscale: tiny\n"
    (copied_configs / "scale" / "tiny.yaml").write_text(text)
    with pytest.raises(ConfigError, match="Could not find 'scale/task/tiny/text'"):
        load("task=text", "scale=tiny")


def test_a_task_without_a_recipe_in_the_protocol_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match="protocol=wavspa has no recipe for task=pathx.*protocol=lra,lru,mega,nystromformer",
    ):
        load("protocol=wavspa", "task=pathx")


@pytest.mark.parametrize("mini", [f"task={task}" for task in TASKS])
def test_no_sequence_of_the_mini_scale_is_longer_than_256(mini: str) -> None:
    config = load(mini, "scale=mini")
    assert config.model.max_length <= 256 and config.task.truncate <= 256


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.steps=0", "train.steps=0: must be at least 1"),
        ("train.learning_rate=-1", "train.learning_rate=-1.0: must be a finite number above 0"),
        (
            "train.warmup_steps=5000",
            "train.warmup_steps=5000: .* fewer than train.steps=5000",
        ),
        ("train.warmup_steps=1", "train.warmup_steps=1: one_cycle needs at least 2"),
        ("train.schedule=cosine", "train.cycle_steps=0: cosine needs at least 1"),
        ("train.precision=half", "train.precision=half: must be one of float32, bfloat16"),
        ("model.pooling=max", "model.pooling=max: must be one of cls, first, mean, mean_padded"),
        ("model.vocab_size=9", "model.vocab_size=9: listops has 16 symbols"),
        ("task.truncate=9999", "task.truncate=9999: must not exceed model.max_length=2048"),
        ("seed=-1", "seed=-1: must be at least 0"),
        ("train.kernel_learning_rate=1e31", r"train.kernel_learning_rate=1e\+31: must be above 0"),
        ("train.cycle_steps=-1", "train.cycle_steps=-1: one_cycle needs at least 0"),
        ("train.kernel_learning_rate=0", "train.kernel_learning_rate=0.0: must be above 0"),
        ("train.undecayed=[biases]", r"train.undecayed=\['biases'\]: must be among dt, A, B, C"),
        ("train.warmup_power=0", "train.warmup_power=0.0: must be a finite number above 0"),
        ("model.norm=group", "model.norm=group: must be one of layer, batch, scale"),
        ("model.norm_place=inside", "model.norm_place=inside: must be one of before, after"),
        ("model.channel_mixing=gmlp", "model.channel_mixing=gmlp: must be one of mlp, glu"),
        ("model.norm_momentum=0", r"model.norm_momentum=0.0: must be in \(0, 1\]"),
        ("model.value_std=0", "model.value_std=0.0: must be a finite number above 0"),
        ("model.output_dropout=1", r"model.output_dropout=1.0: must be a probability in \[0, 1\)"),
        ("train.learning_rate=1e300", r"train.learning_rate=1e\+300: must be at most 1e\+30"),
        (f"seed={10**50}", f"seed={10**50}: must be .* below 2"),
        ("variant=a|b", r"variant=a\|b: must be a plain folder name, without \|"),
        ("variant=a\nb", r"variant=a\\nb: must be a plain folder name, without \\n"),
        (f"variant={'x' * 300}", "variant=x+ ...: must be .* at most 200 bytes"),
        ("device=tpu", "device=tpu: must be auto, cpu, cuda, cuda:<index> or mps"),
        ("validation=dev", "validation=dev: must be one of validation, test"),
        ("variant=a/b", "variant=a/b: must be a plain folder name"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        load(override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=listop", "task=listop: did you mean listops"),
        ("attention=softmx", "attention=softmx: did you mean softmax"),
        ("train.step=3", "there is no key train.step; did you mean train.steps"),
        ("train.steps=many", "train.steps=many: must be a whole number"),
        ("train.learning_rate=fast", "train.learning_rate=fast: must be a number"),
        ("train.compile=perhaps", "train.compile=perhaps: must be true or false"),
    ],
)
def test_a_wrong_name_key_or_type_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(override)


def test_a_wrong_option_of_a_backend_is_named_with_the_choices() -> None:
    config = load("attention=fourier", "attention.options.scale=2")
    with pytest.raises(ConfigError, match=r"options.scale: no such option.*norm \(backward \| ort"):
        build_attention(config.attention)
    config = load("attention=fourier", "attention.options.norm=forward")
    with pytest.raises(ConfigError, match=r"norm='forward': must be backward \| ortho"):
        build_attention(config.attention)


def test_a_wrong_option_of_a_task_is_named_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="task.options.depth: no such option.*max_depth"):
        build_task(load("task.options.depth=2"))
    with pytest.raises(ConfigError, match="task.options.num_test=0: must be at least 1"):
        build_task(load("task.options.num_test=0"))
    with pytest.raises(ConfigError, match=r"'publishd': must be generated \| published \| null"):
        build_task(load("task.options.source=publishd"))
    with pytest.raises(ConfigError, match="is chosen by attention@attention.inner=linear"):
        load("attention=wavspa", "attention.inner=linear")


@pytest.mark.parametrize("task", ["listops", "text", "retrieval", "recall"])
def test_symbols_are_not_read_as_grey_values(task: str) -> None:
    with pytest.raises(ConfigError, match=f"model.inputs=values: {task} has symbols, not grey"):
        build_task(load(f"task={task}", "model.inputs=values"))
    with pytest.raises(ConfigError, match=f"pretrain.loss=l1: {task} has symbols, not grey"):
        build_task(load(f"task={task}", "pretrain=spt", "pretrain.loss=l1"))
    build_task(load("task=pathfinder", "model.inputs=values", "pretrain=spt", "pretrain.loss=l1"))


class Nested:
    def __init__(
        self,
        shape: object,
        *,
        size: int,
        tiles: tuple[int, int] | None = None,
        kind: Literal["a", "b"] = "a",
        rate: float = 0.5,
        inner: object = None,
    ) -> None: ...


def test_bind_checks_types_and_turns_lists_into_tuples() -> None:
    assert bind(Nested, {"size": 3, "tiles": [4, 8], "rate": 1}, "x") == {
        "size": 3,
        "tiles": (4, 8),
        "rate": 1,
    }
    for options, message in [
        ({}, r"x.size: needs a value \(int\)"),
        ({"size": "3"}, "x.size='3': must be int"),
        ({"size": True}, "x.size=True: must be int"),
        ({"size": 3, "tiles": [4]}, "x.tiles="),
        ({"size": 3, "kind": "c"}, r"must be a \| b"),
        ({"size": 3, "inner": 1}, "x.inner: no such option"),
    ]:
        with pytest.raises(ConfigError, match=message):
            bind(Nested, options, "x")


def test_the_hash_covers_what_can_change_the_numbers_and_nothing_else() -> None:
    config = load("task=listops")
    base = config_hash(comparable(config, threads=2))
    same = replace(config, force=True, data_dir="/elsewhere", cache_dir="/tmp/x", runs_dir="/tmp/y")
    assert config_hash(comparable(same, threads=2)) == base
    assert config_hash(comparable(config, threads=1)) != base
    assert config_hash(comparable(replace(config, seed=1), threads=2)) != base
    slower = replace(config, train=replace(config.train, learning_rate=2e-4))
    assert config_hash(comparable(slower, threads=2)) != base


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["task=listops"], "bf6527cf2e80a42e"),
        (["protocol=wavspa", "task=text", "attention=wavspa"], "45933f78eed96d40"),
        (["task=image", "scale=mini", "attention=mra"], "19706cea65fb4388"),
    ],
)
def test_options_added_later_leave_hashes_unchanged(words: list[str], known: str) -> None:
    config = load(*words)
    values = comparable(config, device="cpu", threads=2, data=None)
    assert config_hash(values) == known
    stored = {key: value for key, value in values.items() if key != "data"}
    assert recorded(stored).model == config.model
    other = replace(config, model=replace(config.model, norm="batch"))
    assert config_hash(comparable(other, device="cpu", threads=2, data=None)) != known
    other = replace(config, train=replace(config.train, kernel_learning_rate=0.001))
    assert config_hash(comparable(other, device="cpu", threads=2, data=None)) != known


def test_the_key_data_dir_takes_precedence_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = load()
    monkeypatch.delenv("LRA_DATA_DIR", raising=False)
    assert config.raw_data_dir() is None
    monkeypatch.setenv("LRA_DATA_DIR", "/from/environment")
    assert config.raw_data_dir() == Path("/from/environment")
    assert replace(config, data_dir="/key").raw_data_dir() == Path("/key")


def test_the_files_that_contributing_names_exist() -> None:
    text = (CONFIGS.parent / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:configs|lra|models|tests|results)/[^`\s]+)`", text)
    assert len(named) > 10
    for name in named:
        assert any(CONFIGS.parent.glob(re.sub("<[a-z]+>", "*", name))), name
