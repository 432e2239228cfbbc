"""Self-pretraining: which tokens are hidden and asked for, as one more run of the same loop."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_cell import configure
from torch import Tensor

import lra.loop
import lra.runner
from lra.batches import Batch, Batches
from lra.build import build_model
from lra.checkpoint import BEST, CHECKPOINT, load
from lra.compose import load as compose
from lra.compose import place
from lra.config import Config, ConfigError, PretrainConfig, comparable, config_hash
from lra.division import WHOLE, Division
from lra.hidden import NOTHING, HiddenBatches
from lra.paths import CONFIGS, PRETRAINING
from lra.precision import scaler_for
from lra.record import Record, read_record
from lra.restoration import Restoration, optimisation, restoration
from lra.runner import CellFailedError, run_cell
from lra.status import begun, grid
from lra.tasks import Split
from lra.update import accumulate
from lra.verify import verify
from models import ATTENTION
from models.encoder import Classifier
from models.restorer import HIDDEN, Restorer, is_causal
from models.sizes import ModelConfig

CPU = torch.device("cpu")
LENGTHS = [5, 31, 40, 17, 40, 3, 28, 1]
SPT = ("pretrain=spt", "variant=spt")
SHORT = ("pretrain.steps=12", "pretrain.warmup_steps=3", "pretrain.validate_every=4")
QUICK = (*SPT, *SHORT, "pretrain.batch_size=4", "train.steps=10", "train.validate_every=5")


def split_of(lengths: list[int], sequences: int = 1) -> Split:
    tokens = np.random.default_rng(0).integers(1, 16, sum(lengths), dtype=np.uint8)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Split(tokens, offsets, np.arange(len(lengths) // sequences, dtype=np.int64))


def batches_of(split: Split, *, zero_is_padding: bool = False) -> Batches:
    return Batches(
        split,
        padded_length=40,
        truncate=40,
        id_shift=0,
        zero_is_padding=zero_is_padding,
        trim=True,
        device=CPU,
    )


def by_example(parts: list[Batch]) -> dict[int, tuple[list[Any], list[Any]]]:
    """Return the tokens and labels of every example, without padding."""
    found = {}
    for part in parts:
        assert part.examples is not None
        for number, tokens, labels in zip(part.examples, part.tokens, part.labels, strict=False):
            length = LENGTHS[number]
            found[int(number)] = (tokens[:length].tolist(), labels[:length].tolist())
    return found


def test_exactly_the_hidden_tokens_are_asked_for() -> None:
    split = split_of(LENGTHS)
    [part] = HiddenBatches(batches_of(split), 0.3, seed=1).divided(0, 8, 0, WHOLE)
    assert part.mask is not None
    asked = part.labels != NOTHING
    assert torch.equal(asked, part.tokens == HIDDEN)
    assert not asked[~part.mask].any() and not part.tokens[~part.mask].any()
    assert part.whole == int(asked.sum()) > 20
    [shown] = batches_of(split).divided(0, 8, 0, WHOLE)
    assert torch.equal(part.labels[asked], shown.tokens[asked])
    assert torch.equal(part.tokens[~asked], shown.tokens[~asked])


def test_about_the_requested_share_of_tokens_is_hidden() -> None:
    batches = batches_of(split_of([40] * 500))
    [part] = HiddenBatches(batches, 0.15, seed=0).divided(3, 500, 0, WHOLE)
    hidden = (part.tokens == HIDDEN).double()
    deviation = math.sqrt(0.15 * 0.85 / 20_000)
    assert abs(float(hidden.mean()) - 0.15) < 4 * deviation
    # No position is hidden more often than the others.
    assert (hidden.mean(0) - 0.15).abs().max() < 5 * math.sqrt(0.15 * 0.85 / 500)


def test_hidden_tokens_depend_only_on_seed_step_and_example() -> None:
    hidden = HiddenBatches(batches_of(split_of(LENGTHS)), 0.3, seed=1)
    whole = by_example(hidden.divided(2, 8, 0, WHOLE))
    division = Division(examples=3, shapes=2)
    parts = hidden.divided(2, 8, 0, division)
    assert len(parts) > 1 and by_example(parts) == whole
    assert {part.whole for part in parts} == {hidden.divided(2, 8, 0, WHOLE)[0].whole}
    halves = [hidden.divided(2, 8, 0, division, (rank, 2)) for rank in (0, 1)]
    assert by_example(halves[0] + halves[1]) == whole
    assert {part.whole for half in halves for part in half} == {parts[0].whole}
    # Another epoch or another seed hides different tokens of the same example.
    assert by_example(hidden.divided(3, 8, 0, WHOLE)) != whole
    other = HiddenBatches(batches_of(split_of(LENGTHS)), 0.3, seed=2)
    assert by_example(other.divided(2, 8, 0, WHOLE)) != whole


def test_validation_hides_the_same_tokens_every_time() -> None:
    hidden = HiddenBatches(batches_of(split_of(LENGTHS)), 0.3, seed=1)
    first, second = (hidden.gather(np.array(order)) for order in ([2, 1, 4], [4, 2, 1]))
    assert torch.equal(first.tokens[0], second.tokens[1])
    every = hidden.gather(np.arange(8))
    assert first.whole == every.whole == int((every.tokens == HIDDEN).sum())


def test_tokens_are_hidden_in_both_sequences_of_a_pair() -> None:
    batches = batches_of(split_of(LENGTHS, sequences=2))
    [part] = HiddenBatches(batches, 0.4, seed=0).divided(0, 4, 0, WHOLE)
    assert part.tokens.shape == part.labels.shape == (4, 2, 40)
    assert part.mask is not None and not (part.labels != NOTHING)[~part.mask].any()
    assert (part.tokens == HIDDEN).any(0).any(-1).all()


def test_visible_black_pixels_stay_padding_and_hidden_ones_are_real() -> None:
    tokens = np.array([0, 9] * 100, np.uint8)
    split = Split(tokens, np.arange(0, 201, 40), np.zeros(5, np.int64))
    batches = batches_of(split, zero_is_padding=True)
    [part] = HiddenBatches(batches, 0.5, seed=0).divided(0, 5, 0, WHOLE)
    assert part.mask is not None
    hidden = part.tokens == HIDDEN
    assert torch.equal(part.mask, hidden | (part.tokens == 9))
    assert (part.labels[hidden] == 0).any() and (part.labels[hidden] == 9).any()


def test_the_next_token_is_asked_for_at_every_token_but_the_last() -> None:
    split = split_of(LENGTHS)
    [part] = HiddenBatches(batches_of(split), None, seed=0).divided(0, 8, 0, WHOLE)
    for tokens, labels in by_example([part]).values():
        assert labels == [*tokens[1:], NOTHING]
    assert part.mask is not None
    assert (part.labels[~part.mask] == NOTHING).all()
    assert part.whole == sum(LENGTHS) - len(LENGTHS)


@pytest.mark.parametrize("kind", ["cross_entropy", "l1"])
def test_the_loss_is_the_mean_over_the_tokens_asked_for_however_they_are_divided(kind: str) -> None:
    hidden = HiddenBatches(batches_of(split_of(LENGTHS)), 0.3, seed=1)
    grey = (0.5, 0.25) if kind == "l1" else None
    objective = Restoration(hidden, hidden, grey)
    model = Restorer(classifier("softmax").encoder, 1 if grey else 16, 0.02).double().eval()
    gradients, losses = [], []
    for division in (WHOLE, Division(examples=3, shapes=2)):
        model.zero_grad()
        parts = hidden.divided(0, 8, 0, division)
        scaler = scaler_for(CPU, "float32")
        losses.append(float(accumulate(model, parts, "float32", scaler, objective.loss)))
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(*gradients, strict=True))
    [part] = hidden.divided(0, 8, 0, WHOLE)
    answers, asked = model(part.tokens, part.mask), part.labels != NOTHING
    if grey:
        wanted = (part.labels[asked] / 255 - 0.5) / 0.25
        expected = (answers[asked][:, 0] - wanted).abs().mean()
    else:
        shares = answers[asked].softmax(-1)
        expected = -shares.gather(1, part.labels[asked][:, None]).log().mean()
    assert losses[0] == pytest.approx(float(expected.detach()), rel=1e-6)


def sizes(**changes: Any) -> ModelConfig:
    fixed = {"layers": 2, "dim": 16, "heads": 2, "head_dim": 8, "mlp_dim": 16, "max_length": 64}
    return ModelConfig(**{**fixed, "vocab_size": 16, "positions": "none", **changes})


def classifier(name: str, *, config: ModelConfig | None = None, **options: Any) -> Classifier:
    torch.manual_seed(0)
    return Classifier(config or sizes(), lambda shape: ATTENTION[name](shape, **options), 10)


@pytest.mark.parametrize("inputs", ["tokens", "values"])
def test_hidden_tokens_are_not_seen_and_the_classification_token_is_not_asked_for(
    inputs: str,
) -> None:
    config = sizes(pooling="cls", inputs=inputs)
    model = Restorer(classifier("softmax", config=config).encoder, 16, 0.02).eval()
    tokens = torch.arange(1, 13).repeat(2, 1)
    tokens[:, 4] = HIDDEN
    answers = model(tokens, None)
    assert answers.shape == (2, 12, 16)
    shown = torch.arange(1, 13).repeat(2, 1)
    states = model.encoder.states(model.encoder.embedding(shown), None)[:, 1:]
    # If nothing is hidden, the states are the classifier's, except that of its own token.
    assert torch.allclose(model(shown, None), model.head(states), atol=1e-6)
    assert not torch.allclose(answers, model.head(states), atol=1e-3)
    pair = model(torch.stack([tokens, shown], 1), None)
    assert torch.allclose(pair[:, 0], answers, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_encoders_that_see_later_tokens_are_distinguished_from_causal_ones(name: str) -> None:
    nests = name in ("wavspa", "fourier_space", "ema")
    options = {"inner": ATTENTION["softmax"]} if nests else {}
    assert is_causal(classifier(name, **options).encoder) == (name == "lru")
    if name in ("s4d", "s5", "lru"):
        for both in (True, False):
            encoder = classifier(name, bidirectional=both).encoder
            assert is_causal(encoder) == (not both)
    if name == "ema":
        for inner in ("softmax", "lru"):
            encoder = classifier(name, bidirectional=False, inner=ATTENTION[inner]).encoder
            assert is_causal(encoder) == (inner == "lru")


def run(folder: Path, *overrides: str, name: str = "run") -> Record:
    target = folder / name
    target.mkdir(exist_ok=True)
    record = run_cell(configure(folder, *QUICK, *overrides), target)
    assert record is not None
    return record


def test_a_pretrained_cell_trains_on_from_the_best_encoder_and_records_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[dict[str, Tensor]] = []
    fit = lra.loop.Run.fit

    def spy(self: lra.loop.Run) -> Any:
        starts.append({key: value.clone() for key, value in self.model.state_dict().items()})
        return fit(self)

    monkeypatch.setattr(lra.loop.Run, "fit", spy)
    record = run(tmp_path)
    best = load(tmp_path / "run" / PRETRAINING / BEST, CPU)["model"]
    before, after = starts
    plain = build_model(configure(tmp_path)).state_dict()
    encoder = [key for key in plain if key.startswith("encoder.")]
    assert all(torch.equal(after[key], best[key]) for key in encoder)
    # Pretraining began with the encoder of the cell without it; the head is also that cell's.
    assert all(torch.equal(before[key], plain[key]) for key in encoder)
    assert all(torch.equal(after[key], plain[key]) for key in plain if key not in encoder)
    assert any(not torch.equal(after[key], plain[key]) for key in encoder)
    assert (record.pretrain, record.pretrain_objective) == ("spt", "hidden")
    assert (record.pretrain_steps, record.steps) == (12, 10)
    assert 0 < record.pretrain_seconds < record.seconds
    assert record.pretrain_loss and 1 < record.pretrain_loss < math.log(16) + 1
    assert read_record(tmp_path / "run" / "result.json") == record
    assert list(begun(tmp_path)) == [tmp_path / "run"]
    with pytest.raises(ConfigError, match="its first updates depend on 12 updates of pretraining"):
        verify(tmp_path / "run", 5, 0, None, str(tmp_path / "cache"))
    # The cell is finished: nothing is done again.
    assert run_cell(configure(tmp_path, *QUICK), tmp_path / "run") is None


class KilledError(BaseException):
    """Ends a run like a kill: nothing is saved on the way."""


@pytest.mark.parametrize("killed_at", [7, 16])
def test_a_pretrained_cell_that_is_killed_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    options = ["train.checkpoint_seconds=0"]
    whole = run(tmp_path, *options, name="whole")
    updates = 0
    add = lra.loop.accumulate

    def counting(*arguments: Any) -> Tensor:
        nonlocal updates
        updates += 1
        if updates == killed_at:
            raise KilledError
        return add(*arguments)

    monkeypatch.setattr(lra.loop, "accumulate", counting)
    with pytest.raises(KilledError):
        run(tmp_path, *options, name="broken")
    assert (tmp_path / "broken" / CHECKPOINT).exists() == (killed_at > 12)
    again = run(tmp_path, *options, name="broken")
    assert updates == 1 + 22
    for where, file in [("", BEST), (PRETRAINING, BEST), ("", CHECKPOINT)]:
        one, two = (load(tmp_path / n / where / file, CPU)["model"] for n in ("whole", "broken"))
        assert all(torch.equal(one[key], two[key]) for key in one), (where, file)
    assert (whole.test_correct, whole.pretrain_loss, whole.loss_fingerprint) == (
        again.test_correct,
        again.pretrain_loss,
        again.loss_fingerprint,
    )


def test_pretraining_that_diverges_ends_the_cell_as_failed(tmp_path: Path) -> None:
    with pytest.raises(CellFailedError, match="pretraining: loss nan in steps"):
        run(tmp_path, "pretrain.learning_rate=1e30", "model.attention_dropout=0.0")


def test_a_cell_with_pretraining_has_its_own_hash_folder_and_name() -> None:
    plain, folder = place("scale=mini")
    pretrained, other = place("scale=mini", "pretrain=spt")
    assert "pretrain" not in comparable(plain)
    assert config_hash(comparable(plain)) != config_hash(comparable(pretrained))
    assert folder.parts[-2:] == ("default", "seed0") and other.parts[-2:] == ("spt", "seed0")
    changed, _ = place("scale=mini", "pretrain=spt", "pretrain.steps=5", "train.steps=50")
    assert changed.variant == "spt,pretrain.steps=5,train.steps=50"
    assert place("debug=true", "pretrain=spt")[0].variant == "spt,debug"
    words = ["task=listops", "attention=softmax", "pretrain=none,spt", "scale=mini"]
    assert [cell.parts[-2] for cell, _ in grid(words)] == ["default", "spt"]
    # Without pretraining, a recipe keeps its learning rate; with it, it has that of the paper.
    s4 = ("protocol=s4", "task=text", "attention=s4d")
    assert (compose(*s4).train.learning_rate, compose(*s4, "pretrain=spt").train.learning_rate) == (
        0.01,
        5e-4,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pretrain.steps=5"], "pretrain.steps=5: there is no pretraining; pretrain=spt asks"),
        (
            ["pretrain=spt", "variant=mine"],
            "variant=mine: with pretrain=spt it must begin with spt",
        ),
        (["variant=spt"], "variant=spt: names pretraining; set pretrain=spt"),
        (["pretrain=spt", "pretrain.hidden_share=1"], "hidden_share=1.0: must be a share above 0"),
        (
            ["pretrain=spt", "pretrain.loss=l2"],
            "pretrain.loss=l2: must be one of cross_entropy, l1",
        ),
        (["pretrain=spt", "pretrain.steps=0"], "pretrain.steps=0: must be at least 1"),
        (["pretrain=stp"], "pretrain=stp: did you mean spt"),
    ],
)
def test_impossible_pretraining_options_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose("scale=mini", *words)


# Masked pretraining of the Transformer and of S4, appendix C.1 of arXiv 2310.02980: the share that
# is hidden, the Transformer's rate, and S4's rate and batch.
PUBLISHED = {
    "listops": (0.1, 1e-3, 1e-3, 128),
    "text": (0.15, 5e-4, 5e-4, 8),
    "retrieval": (0.15, 5e-3, 5e-4, 8),
    "image": (0.5, 1e-3, 1e-3, 32),
    "pathfinder": (0.5, 1e-3, 1e-3, 8),
    "pathx": (0.5, 5e-4, 1e-3, 8),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_rates_and_shares_are_the_published_ones(task: str) -> None:
    share, rate, s4_rate, s4_batch = PUBLISHED[task]
    plain = compose(f"task={task}", "pretrain=spt").pretrain
    assert (plain.hidden_share, plain.learning_rate, plain.batch_size) == (share, rate, 32)
    s4 = compose(f"task={task}", "protocol=s4", "attention=s4d", "pretrain=spt").pretrain
    assert (s4.hidden_share, s4.learning_rate, s4.batch_size) == (share, s4_rate, s4_batch)
    assert plain.loss == s4.loss == ("l1" if task == "image" else "cross_entropy")


def test_spt_sets_every_key_of_pretraining_and_none_sets_only_its_name() -> None:
    import yaml

    keys = set(PretrainConfig.__dataclass_fields__)
    assert set(yaml.safe_load((CONFIGS / "pretrain" / "spt.yaml").read_text())) == keys
    assert yaml.safe_load((CONFIGS / "pretrain" / "none.yaml").read_text()) == {"name": "none"}


def test_the_optimisation_of_pretraining_has_its_own_schedule_and_decay() -> None:
    config = compose("scale=mini", *SPT, "pretrain.weight_decay=0.7")
    assert config.train.schedule != "constant" and config.train.weight_decay != 0.7
    own = optimisation(config.pretrain, config.train)
    assert (own.schedule, own.weight_decay) == ("constant", 0.7)


def test_images_are_restored_in_the_units_that_the_model_reads() -> None:
    config: Config = configure(Path(), *SPT, "pretrain.loss=l1", "model.value_mean=0.4")
    config = replace(config, model=replace(config.model, value_std=0.2))
    batches = batches_of(split_of(LENGTHS))
    restorer, objective = restoration(config, build_model(config), batches, batches)
    assert restorer.head.out_features == 1 and objective.grey == (0.4, 0.2)
