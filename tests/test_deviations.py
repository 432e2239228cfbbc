"""Every deviation that a protocol states, shown: ours is the published form but for that one thing.

Each form below is written after the published code, densely and in loops, with a switch for every
deviation. With all switches set as in ours, it gives what our backend gives; with any one set as
published, it gives something else.
"""

import math
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_headers import parts
from tiny_cell import configure
from torch import Tensor, nn

from lra.build import build_model
from lra.compose import load
from lra.config import TrainConfig
from lra.optimiser import optimiser_for
from lra.paths import CONFIGS
from lra.runner import run_cell
from lra.tasks import cifar10, image
from models.bigbird import BigBird
from models.encoder import Encoder
from models.feature_attention import feature_attention_reference
from models.heads import AttentionShape
from models.legs import legs_spectrum
from models.linear import Linear
from models.linformer import Linformer
from models.longformer import Longformer
from models.mra import Selection, block_scores, mra_attention, select_blocks
from models.nystromformer import Nystromformer
from models.performer import Performer
from models.reformer import Reformer, hash_buckets
from models.sizes import ModelConfig
from models.softmax import Softmax

TESTS = Path(__file__).parent
# By file, the beginnings of the statements that a test here shows, and of those shown elsewhere,
# with the beginnings of the names of the tests that show them, separated by spaces.
SHOWN: dict[str, list[str]] = defaultdict(list)
READ_ONCE = "test_an_epoch_holds_every_example_once test_once_yields_every_example_once"
TENTH = "test_a_seeded_tenth_of_each_class_validates"
BYTES = "test_both_texts_are_kept_byte_by_byte test_bytes_that_are_not_text_are_kept_as_they_are"
# Real positions are exactly those of the data.
NO_END = "test_ids_are_shifted_and_padding_is_zero_under_the_mask"
BRACKETS = "test_published_rows_lose_their_parentheses_and_keep"
BY_SEED = "test_eight_tenths_are_for_training_and_chosen_by_the_seed_alone"
# What the protocols of state-space layers share.
EPOCH = {"each epoch is one permutation": f"{READ_ONCE} test_a_batch_depends_on_seed_and_step_only"}
DATA = EPOCH | {
    "Text and Retrieval are bytes": BYTES,
    "Text selects on a tenth": TENTH,
    "Pathfinder and Path-X are divided": BY_SEED,
}
WITHOUT_END = {"Text, Retrieval and ListOps have no end": f"{BYTES} {BRACKETS} {NO_END}"}
ELSEWHERE: dict[str, dict[str, str]] = {
    "protocol/lra.yaml": {
        "the checkpoint that validation chose": "test_validation_chooses_and_the_test_set_is_used",
        "Text selects on a tenth": "test_a_seeded_tenth_of_each_class_validates",
        "every validation and the test read": "test_once_yields_every_example_once",
        "each epoch is one permutation": "test_an_epoch_holds_every_example_once",
        "backends differ": "test_every_stated_deviation_is_shown",
    },
    "protocol/nystromformer.yaml": {
        "on the CPU float32": "test_float16_on_gpu_is_float32_on_the_cpu",
        "every validation reads": "test_once_yields_every_example_once",
        "the whole test set counts": "test_once_yields_every_example_once",
        "each epoch is one permutation": "test_an_epoch_holds_every_example_once",
        "ListOps keeps its brackets": "test_published_rows_lose_their_parentheses_and_keep",
        "Text is validated": "test_a_seeded_tenth_of_each_class_validates",
        "Pathfinder is divided": "test_eight_tenths_are_for_training_and_chosen_by_the_seed_alone",
    },
    "protocol/wavspa.yaml": {
        "Text selects on a tenth": "test_a_seeded_tenth_of_each_class_validates",
        "every validation and the test read": "test_once_yields_every_example_once",
        "each epoch is one permutation": "test_an_epoch_holds_every_example_once",
    },
    "protocol/attention/wavspa/wavspa.yaml": {
        "the inner attentions other": "test_the_flax_protocols_start_xavier_uniform_and_their",
    },
    "protocol/task/lra/text.yaml": {
        "a tenth of train is": "test_a_seeded_tenth_of_each_class_validates",
    },
    "protocol/task/nystromformer/text.yaml": {
        "a tenth of train is": "test_a_seeded_tenth_of_each_class_validates",
    },
    "protocol/task/wavspa/text.yaml": {
        "a tenth of train is": "test_a_seeded_tenth_of_each_class_validates",
    },
    "protocol/task/nystromformer/listops.yaml": {
        "the data keep their brackets": "test_published_rows_lose_their_parentheses_and_keep",
    },
    "protocol/task/nystromformer/pathfinder.yaml": {
        "the images are split": "test_eight_tenths_are_for_training_and_chosen_by_the_seed_alone",
    },
    "protocol/task/wavspa/pathfinder.yaml": {
        "the images are split": "test_eight_tenths_are_for_training_and_chosen_by_the_seed_alone",
    },
    "protocol/task_attention/wavspa/text_wavspa.yaml": {
        "the filters that the released lifting": "test_wavspa_has_the_published_parameters_in_its",
    },
    "protocol/lru.yaml": DATA
    | WITHOUT_END
    | {"Image is grey": "test_grey_follows_the_weights test_pixels_are_grey_values_and_the_rest"},
    "protocol/s4.yaml": DATA
    | WITHOUT_END
    | {
        "the sizes are those of version 4": "test_the_layer_has_the_published_options_and_no_others"
    },
    "protocol/s4_small.yaml": EPOCH,
    "protocol/s5.yaml": DATA | WITHOUT_END,
    "protocol/mega.yaml": DATA
    | {
        "a batch that the release accumulates": "test_statistics_over_the_batch_keep_it_whole",
    },
}
for _protocol in ("lru", "mega", "s4", "s5"):
    _folder = f"protocol/task/{_protocol}"
    ELSEWHERE[f"{_folder}/text.yaml"] = {
        "bytes instead of characters": BYTES,
        "a tenth of train is": TENTH,
    }
    ELSEWHERE[f"{_folder}/retrieval.yaml"] = {"bytes instead of characters": BYTES}
    for _task in ("pathfinder", "pathx"):
        ELSEWHERE[f"{_folder}/{_task}.yaml"] = {"the images are split": BY_SEED}
    if _protocol != "mega":
        ELSEWHERE[f"{_folder}/listops.yaml"] = {
            "no end-of-sequence token is appended": f"{BRACKETS} {NO_END}"
        }
Test = Callable[..., None]


def shows(file: str, *statements: str) -> Callable[[Test], Test]:
    SHOWN[f"protocol/{file}.yaml"] += statements
    return lambda test: test


def double(backend: nn.Module) -> nn.Module:
    return backend.double().eval()


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float = 1.0) -> Tensor:
    logits = scale * (q @ k.mT) / q.shape[-1] ** 0.5
    return logits.masked_fill(~allowed, -torch.inf).softmax(-1).nan_to_num() @ v


def inputs(length: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, length, dim, dtype=torch.float64)
    return x, torch.arange(length) < torch.tensor([[length], [length - 4]])


def shape_of(length: int, **sizes: Any) -> AttentionShape:
    return AttentionShape(dim=8, heads=2, head_dim=4, max_length=length, **sizes)


def check(
    ours: Tensor, form: Callable[..., Tensor], deviations: dict[str, Any], at: Tensor | None = None
) -> None:
    """Check that the form gives what ours gives, but not with any one deviation undone."""
    at = torch.ones_like(ours[..., 0], dtype=torch.bool) if at is None else at
    torch.testing.assert_close(form()[at], ours[at])
    for name, published in deviations.items():
        assert (form(**{name: published}) - ours)[at].abs().max() > 1e-4, name


# BigBird, in the Long Range Arena and in the comparison of MRA.


def bigbird_form(
    x: Tensor, mask: Tensor, ours: BigBird, size: int, *, filled: bool = False,
    limit: int | None = None, padded_query_attends: bool = True,
) -> Tensor:  # fmt: skip
    length = x.shape[1]
    real = mask
    if filled:
        # Zeros, as no projection has a bias; a whole block of them if it divides the length.
        more = size - length % size
        x = torch.cat([x, x.new_zeros(len(x), more, x.shape[2])], 1)
        real = torch.cat([mask, mask.new_ones(len(x), more)], 1)
    q, k, v = ours.projections.split(x)
    pattern, blocks = ours.pattern, ours.blocks.shape[1]
    if limit is not None:
        pattern = BigBird(shape_of(length, bias=False), block_size=size, random_limit=limit).pattern
    block = torch.arange(x.shape[1]) // size
    last = int(block[-1]) if filled else blocks - 1
    allowed = torch.zeros(1, 2, x.shape[1], x.shape[1], dtype=torch.bool)
    for head in range(2):
        for row in range(last + 1):
            seen = {row - 1, row, row + 1, 0, last}
            # The row's random blocks, which follow those of window and ends in the pattern.
            if row < blocks:
                drawn = pattern.blocks[head, row, 5:][pattern.counts[head, row, 5:]]
                seen |= set(drawn.tolist())
            if row in (0, last):
                seen = set(range(last + 1))
            columns = torch.isin(block, torch.tensor(sorted(seen)))
            allowed[0, head] |= (block == row)[:, None] & columns
    heads = attend(q, k, v, allowed & real[:, None, None])
    if not padded_query_attends:
        heads = heads.masked_fill(~real[:, None, :, None], 0.0)
    return ours.projections.merge(heads)[:, :length]


@shows(
    "attention/lra/bigbird",
    "random blocks may be any",
    "nothing attends to the filling of the last block",
    "a padded query attends",
)
@pytest.mark.parametrize("length", [70, 72])
def test_bigbird_adds_no_keys_limits_no_random_blocks_and_lets_padded_queries_attend(
    length: int,
) -> None:
    ours = double(BigBird(shape_of(length, bias=False), block_size=6))
    x, mask = inputs(length)

    def form(**published: Any) -> Tensor:
        return bigbird_form(x, mask, ours, 6, **published)

    check(ours(x, mask), form, {"filled": True, "limit": 24, "padded_query_attends": False})
    limited = double(BigBird(shape_of(length, bias=False), block_size=6, random_limit=24))
    limited.projections = ours.projections
    torch.testing.assert_close(form(limit=24), limited(x, mask))


@shows("attention/lra/bigbird", "all layers have the same random blocks")
def test_bigbird_has_the_same_random_blocks_in_every_layer() -> None:
    config = load("protocol=lra", "task=listops", "attention=bigbird", "model.layers=2")
    first, second = (block.attention for block in build_model(config).encoder.blocks)
    assert torch.equal(first.blocks, second.blocks)
    shape = shape_of(2001)
    own = [BigBird(shape, block_size=64, random_blocks=3, seed=layer).blocks for layer in (0, 1)]
    assert not torch.equal(*own)


@pytest.mark.parametrize("backend", [BigBird, Linformer])
@shows("attention/lra/bigbird", "dropout applies to attention weights")
@shows("nystromformer", "Linformer drops attention weights")
@shows("attention/wavspa/linformer", "dropout applies to the attention weights")
def test_attention_weights_are_dropped_and_none_without_attention_dropout(backend: Any) -> None:
    x, mask = inputs(20)
    dropping, plain = (backend(shape_of(20, dropout=p)).double() for p in (0.5, 0.0))
    dropping.load_state_dict(plain.state_dict())
    assert not torch.allclose(dropping(x, mask), plain(x, mask))
    torch.testing.assert_close(dropping.eval()(x, mask), plain(x, mask))


@shows("nystromformer", "BigBird draws its random blocks once")
def test_bigbird_draws_once_from_all_blocks_and_uses_them_in_evaluation_too() -> None:
    ours = BigBird(shape_of(300), block_size=6, random_blocks=2)
    before = ours.blocks.clone()
    x, mask = inputs(300)
    ours(x.float(), mask)
    assert torch.equal(ours.blocks, before)
    drawn = ours.blocks[..., 5:][ours.counts[..., 5:]]
    among = BigBird(shape_of(300), block_size=6, random_blocks=2, random_limit=(2 * 2 + 5) * 6)
    limited = among.blocks[..., 5:][among.counts[..., 5:]]
    assert drawn.max() > 8 and limited.max() < 9
    assert not torch.equal(BigBird(shape_of(300), block_size=6, seed=1).blocks, before)
    none = double(BigBird(shape_of(300), block_size=6, random_blocks=0))
    none.projections = double(ours).projections
    assert not torch.allclose(ours(x, mask), none(x, mask))


# Linformer.


@shows("attention/lra/linformer", "padding is masked, while the release mixes it in")
def test_linformer_masks_padding_that_would_otherwise_be_mixed_in() -> None:
    ours = double(Linformer(shape_of(20), rank=5, per_head=False))
    x, mask = inputs(20)

    def form(mixed_in: bool = False) -> Tensor:
        q, k, v = ours.projections.split(x)
        if not mixed_in:
            k, v = (t * mask[:, None, :, None] for t in (k, v))
        k, v = ours.to_keys @ k, ours.to_keys @ v
        return ours.projections.merge(attend(q, k, v, torch.tensor(True)))

    check(ours(x, mask), form, {"mixed_in": True})
    torch.testing.assert_close(ours(x, None), form(mixed_in=True))


@shows("attention/lra/linformer", "the projection starts normal")
@shows("attention/wavspa/linformer", "projections start Xavier-uniform")
@shows("nystromformer", "Linformer's projections start with")
def test_linformers_projection_starts_normal_with_a_configurable_spread() -> None:
    shape = shape_of(1000)
    ours = Linformer(shape, rank=100, per_head=False).to_keys.detach()
    assert ours.std().item() == pytest.approx(0.02, rel=0.02)
    assert (ours / ours.std()).pow(4).mean().item() == pytest.approx(3, abs=0.1)
    xavier = nn.init.xavier_uniform_(torch.empty(1000, 100))
    same = Linformer(shape, rank=100, spread=float(xavier.std())).to_keys
    assert same.std().item() == pytest.approx((2 / 1100) ** 0.5, rel=0.03)
    as_mra = Linformer(shape, rank=100, spread=None).to_keys
    assert as_mra.std().item() == pytest.approx(0.1, rel=0.02)
    config = load("protocol=wavspa", "task=listops", "attention=linformer", "model.layers=1")
    projections = build_model(config).encoder.blocks[0].attention.projections
    bound = projections.qkv.weight.abs().max().item()
    assert bound == pytest.approx((6 / (128 + 64)) ** 0.5, rel=0.01)
    assert 0 < projections.qkv.bias.std().item() < 2e-6


@shows("nystromformer", "Linformer has projections for each layer")
def test_linformers_layers_have_their_own_projections_unless_they_share_them() -> None:
    words = ["task=listops", "attention=linformer", "scale=mini", "model.layers=2"]
    for share in (False, True):
        config = load(*words, f"attention.options.share_layers={str(share).lower()}")
        first, second = (block.attention for block in build_model(config).encoder.blocks)
        assert (first.to_keys is second.to_keys) == share


# Longformer.


@shows("attention/lra/longformer", "the window has 256 tokens to either side")
@shows("attention/wavspa/longformer", "the window has 256 tokens to either side")
def test_longformers_window_reaches_one_token_further_left_than_published() -> None:
    ours = double(Longformer(shape_of(20), window=6, num_global=0))
    x, mask = inputs(20)
    step = torch.arange(20)[:, None] - torch.arange(20)  # from the key to the query

    def form(left: int = 3) -> Tensor:
        allowed = (step <= left) & (step >= -3)
        heads = attend(*ours.projections.split(x), allowed & mask[:, None, None])
        return ours.projections.merge(heads)

    check(ours(x, mask), form, {"left": 2})


@shows("attention/lra/longformer", "the unused projections of global tokens")
@shows("attention/wavspa/longformer", "the unused projections of global tokens")
def test_longformer_has_no_projections_that_it_does_not_use() -> None:
    ours, softmax = Longformer(shape_of(20), num_global=0), Softmax(shape_of(20))
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in softmax.state_dict().items()
    }


@shows("nystromformer", "Longformer's global token is masked where it is padding")
def test_longformers_first_token_is_not_a_key_if_it_is_black() -> None:
    ours = double(Longformer(shape_of(20), window=4, num_global=1))
    x, mask = inputs(20)
    mask = mask.clone()
    mask[:, 0] = False
    step = (torch.arange(20)[:, None] - torch.arange(20)).abs()

    def form(first_is_real: bool = False) -> Tensor:
        real = mask.clone()
        real[:, 0] |= first_is_real
        allowed = step <= 2
        allowed[0] = allowed[:, 0] = True
        heads = attend(*ours.projections.split(x), allowed & real[:, None, None])
        return ours.projections.merge(heads)

    check(ours(x, mask), form, {"first_is_real": True}, mask)
    real = mask.clone()
    real[:, 0] = True
    torch.testing.assert_close(ours(x, real), form(first_is_real=True))


# Kernels: Performer and linear attention.


@shows("attention/lra/performer", "padding is masked, while in the release it is not")
@shows("task_attention/lra/listops_performer", "padding is masked, while in the release it is not")
@pytest.mark.parametrize("features", ["relu_plain", "favor"])
def test_performer_masks_padding(features: Any) -> None:
    ours = double(Performer(shape_of(20), features=features, num_features=2))
    x, mask = inputs(20)
    assert not torch.allclose(ours(x, mask)[mask], ours(x, None)[mask])
    q, k, v = ours.projections.split(x)
    if features == "relu_plain":
        unmasked = feature_attention_reference(q.relu() + 1e-3, k.relu() + 1e-3, v, None)
        torch.testing.assert_close(ours(x, None), ours.projections.merge(unmasked))


@shows("task_attention/lra/listops_performer", "the features are drawn once")
def test_performers_features_are_drawn_once_unless_redrawn_at_every_call() -> None:
    x = torch.randn(2, 20, 8)
    kept, anew = (Performer(shape_of(20), num_features=2, redraw=redraw) for redraw in (None, 1))
    for ours, same in ((kept, True), (anew, False)):
        ours(x)
        first = ours.directions
        ours(x)
        assert torch.equal(first, ours.directions) == same


def twice_scaled(x: Tensor, mask: Tensor, ours: Performer, scale: float, counted: bool) -> Tensor:
    q, k, v = ours.projections.split(x)
    q, k = q * scale, k * scale * (mask[:, None, :, None] if counted else 1.0)
    root = q.shape[-1] ** 0.25
    of_queries, of_keys = (
        ((t / root) @ ours.directions.T - (t / root).square().sum(-1, keepdim=True) / 2).exp()
        for t in (q, k)
    )
    weights = of_queries @ of_keys.mT
    real = mask[:, None, None]
    total = weights if counted else weights * real
    return ours.projections.merge(weights * real / total.sum(-1, keepdim=True) @ v)


@shows("nystromformer", "Performer is FAVOR+ at the scale of softmax")
def test_performer_scales_once_and_leaves_padding_out_of_its_normaliser() -> None:
    ours = double(Performer(shape_of(20), num_features=12))
    x, mask = inputs(20)

    def form(scale: float = 1.0, counted: bool = False) -> Tensor:
        return twice_scaled(x, mask, ours, scale, counted)

    check(ours(x, mask), form, {"scale": 4**-0.25, "counted": True}, mask)
    # Scaling q and k beforehand undoes the first deviation.
    with torch.no_grad():
        ours.projections.qkv.weight[:16] *= 4**-0.25
        ours.projections.qkv.bias[:16] *= 4**-0.25
    torch.testing.assert_close(ours(x, mask), form())


@shows("task_attention/lra/pathfinder_linear", "padding and black pixels are masked")
@shows("lra", "linear attention masks padding, and black pixels")
def test_linear_attention_masks_padding_except_as_released() -> None:
    ours, released = (
        double(Linear(shape_of(20), as_released=as_released)) for as_released in (False, True)
    )
    released.load_state_dict(ours.state_dict())
    x, mask = inputs(20)

    def form(unmasked: bool = False) -> Tensor:
        q, k, v = ours.projections.split(x)
        q, k = (torch.where(t > 0, t + 1, t.exp()) for t in (q, k))
        weights = q @ k.mT * (1.0 if unmasked else mask[:, None, None])
        return ours.projections.merge(weights / (weights.sum(-1, keepdim=True) + 1e-12) @ v)

    check(ours(x, mask), form, {"unmasked": True}, mask)
    torch.testing.assert_close(released(x, mask), form(unmasked=True))
    assert ours.pad_invariant and not released.pad_invariant


@shows("nystromformer", "Linear attention divides by the sum of its weights")
def test_linear_attention_has_a_normaliser() -> None:
    ours = double(Linear(shape_of(20)))
    x, mask = inputs(20)

    def form(normalised: bool = True) -> Tensor:
        q, k, v = ours.projections.split(x)
        q, k = (torch.where(t > 0, t + 1, t.exp()) for t in (q, k))
        weights = q @ k.mT * mask[:, None, None]
        return ours.projections.merge(
            weights / (weights.sum(-1, keepdim=True) if normalised else 20**0.5) @ v
        )

    check(ours(x, mask), form, {"normalised": False}, mask)


@shows("attention/wavspa/linear", "nothing is dropped after the output projection")
@shows("attention/wavspa/wavspa", "linear attention drops nothing")
def test_linear_attention_drops_nothing_and_in_wavspa_nor_does_the_block_after_it() -> None:
    x, mask = inputs(20)
    ours = Linear(shape_of(20, dropout=0.5)).double()
    torch.testing.assert_close(ours.train()(x, mask), ours.eval()(x, mask))
    config = load("protocol=wavspa", "task=listops", "attention=linear", "model.layers=1")
    assert config.model.dropout > 0
    assert isinstance(build_model(config).encoder.blocks[0].output, nn.Identity)


# MRA-2.


def mra_form(
    qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor, selection: Selection, full: bool, *,
    by_threshold: bool = False, as_in_thousandths: bool = False,
) -> Tensor:  # fmt: skip
    """Attend with a logit for every pair of tokens, given blocks of 4 tokens."""
    q, k, v = (x * mask[:, None, :, None] for x in qkv)
    pairs = select_blocks(q, k, mask, selection)
    counts = mask.view(len(mask), 1, -1, 4).sum(-1)
    means = [x.unflatten(2, (-1, 4)).sum(3) / counts.clamp(min=1)[..., None] for x in (q, k)]
    scores = block_scores(*means, (counts > 0).expand(means[0].shape[:-1]), selection).flatten(2)
    exact = torch.zeros_like(scores, dtype=torch.bool).scatter(2, pairs, True)
    coarse = ~exact
    if by_threshold:
        coarse = scores < scores.gather(2, pairs).amin(-1, keepdim=True)
    exact, coarse = (each.unflatten(2, (counts.shape[-1], -1)) for each in (exact, coarse))
    logits = q @ k.mT / q.shape[-1] ** 0.5

    def by_token(blocks: Tensor) -> Tensor:
        return blocks.repeat_interleave(4, -2).repeat_interleave(4, -1)

    logits = torch.where(by_token(exact), logits, by_token(means[0] @ means[1].mT) / 2)
    allowed = by_token(exact | coarse if full else exact)
    real = allowed & mask[:, None, None]
    top = logits.masked_fill(~(allowed if as_in_thousandths else real), -1e9).amax(-1, True)
    weights = (logits - top).exp() * real
    norm = weights.sum(-1, keepdim=True) + 1e-6 * as_in_thousandths
    return weights @ v / norm.clamp(min=1e-30) * mask[:, None, :, None]


@shows("nystromformer", "MRA-2 takes exactly the blocks that it selected")
def test_mra_2_leaves_out_what_it_selected_and_adds_no_small_constants() -> None:
    x = torch.randn(2, 2, 24, 4, dtype=torch.float64)
    every = torch.ones(2, 24, dtype=torch.bool)

    def both(mask: Tensor, selection: Selection, full: bool) -> tuple[Tensor, Callable[..., Any]]:
        mode = "full" if full else "sparse"
        ours = mra_attention(*qkv, mask, selection, mode).transpose(1, 2)
        form = lambda **more: mra_form(qkv, mask, selection, full, **more).transpose(1, 2)  # noqa: E731
        return ours, form

    # The best pairs of all six rows are equally good, and three are selected.
    qkv = (x, x, x)
    selection = Selection(num_blocks=3, block_size=4)
    check(*both(every, selection, full=True), {"by_threshold": True})
    # Logits of real keys about -12, and half a block of padding.
    qkv = (x.abs() + 2, -x.abs() - 2, x)
    padded = every & (torch.arange(24) < 22)
    selection = Selection(num_blocks=36, block_size=4)
    check(*both(padded, selection, full=False), {"as_in_thousandths": True}, padded)


# Nystromformer.


def nystrom_form(
    x: Tensor, mask: Tensor, ours: Nystromformer, *, over_padding: bool = False,
    whole_batch: bool = False,
) -> Tensor:  # fmt: skip
    """Attend in segments of 4 tokens, the last of which may be nothing but padding."""
    q, k, v = ours.projections.split(x)
    real = mask[:, None, :, None]
    q, k = q * real / 4**0.25, k * real / 4**0.25
    q_means, k_means = (t.unflatten(2, (-1, 4)).sum(3) for t in (q, k))
    counts = mask.unflatten(1, (-1, 4)).sum(2).double()[:, None, :, None]
    alive = torch.ones_like(counts[..., 0]).bool() if over_padding else counts[..., 0] > 0
    counts = torch.full_like(counts, 4.0) if over_padding else counts.clamp(min=1)
    q_means, k_means = q_means / counts, k_means / counts
    scores = (q @ k_means.mT, q_means @ k_means.mT)
    one, two = (t.masked_fill(~alive[:, :, None], -1e9).softmax(-1) for t in scores)
    two = two * alive[..., None]
    three = (q_means @ k.mT).masked_fill(~mask[:, None, None], -1e9).softmax(-1)
    largest = two.sum(-2).max() if whole_batch else two.sum(-2).amax(-1)[..., None, None]
    inverse = two.mT / largest
    eye = torch.eye(two.shape[-1], dtype=x.dtype)
    for _ in range(ours.iterations):
        product = two @ inverse
        inverse = 0.25 * inverse @ (13 * eye - product @ (15 * eye - product @ (7 * eye - product)))
    return ours.projections.merge(one @ inverse @ (three @ v))


@shows(
    "nystromformer",
    "Nystromformer's landmarks average real tokens only",
    "Nystromformer's pseudo-inverse starts",
)
def test_nystromformer_ignores_padding_and_other_sequences() -> None:
    x, mask = inputs(24)
    mask = torch.arange(24) < torch.tensor([[24], [14]])
    built = {
        flag: double(
            Nystromformer(
                shape_of(24), landmarks=6, iterations=3, conv=None, landmarks_over_padding=flag
            )
        )
        for flag in (False, True)
    }
    built[True].load_state_dict(built[False].state_dict())
    with torch.no_grad():
        # Far enough from an average that the inverse matters.
        built[False].projections.qkv.weight.mul_(4)
        built[True].load_state_dict(built[False].state_dict())

    def form(**published: bool) -> Tensor:
        return nystrom_form(x, mask, built[False], **published)

    check(built[False](x, mask), form, {"over_padding": True, "whole_batch": True}, mask)
    torch.testing.assert_close(built[True](x, mask)[mask], form(over_padding=True)[mask])
    assert built[False].pad_invariant and not built[True].pad_invariant


# Reformer.


def reformer_form(
    x: Tensor, mask: Tensor, ours: Reformer, chunk: int, *, projected: bool = True,
    unit_keys: bool = True, scale: float = 1.0, masked: bool = True, filled: bool = False,
    first_sees_last: bool = False, one_draw: bool = False, scrambled: bool = False,
) -> Tensor:  # fmt: skip
    """Attend to the token's own chunk and the one before, in the order of one round of buckets."""
    end = x.shape[1]
    if filled:
        x = torch.cat([x, x.new_zeros(len(x), chunk - end % chunk, x.shape[2])], 1)
        mask = torch.cat([mask, mask.new_ones(len(x), x.shape[1] - mask.shape[1])], 1)
    q, _, v = ours.projections.split(x)
    rotations = ours.rotations[:1].expand_as(ours.rotations) if one_draw else ours.rotations
    (buckets,) = hash_buckets(q, rotations, ours.factors)
    k = q * (q.square().sum(-1, keepdim=True) + 4e-6).rsqrt() if unit_keys else q
    heads = torch.zeros_like(q)
    length = x.shape[1]
    for b in range(len(x)):
        real = mask[b] if masked else torch.ones_like(mask[b])
        for h in range(q.shape[1]):
            order = sorted(range(length), key=lambda n: (not real[n], int(buckets[b, h, n]), n))  # noqa: B023
            chunks = [order[i : i + chunk] for i in range(0, length, chunk)]
            for i, rows in enumerate(chunks):
                before = chunks[i - 1] if i or first_sees_last else []
                reach = [n for n in dict.fromkeys([*before, *rows]) if real[n]]
                for n in rows:
                    keys = [m for m in reach if m != n or not masked] or [n] * bool(real[n])
                    weights = (scale * k[b, h, keys] @ q[b, h, n]).softmax(0)
                    heads[b, h, n] = weights @ v[b, h, keys]
    joined = heads if scrambled else heads.transpose(1, 2)
    joined = joined.reshape(len(x), length, -1)
    return (ours.projections.out(joined) if projected else joined)[:, :end]


@shows(
    "attention/lra/reformer",
    "the output is projected and dropout applies to attention weights",
    "keys have unit length",
    "padding is masked and a token attends to itself only",
    "the first chunk has no chunk before it",
    "each head has its own directions",
    "heads are joined position by position",
)
def test_reformer_differs_from_the_release_in_every_stated_way() -> None:
    ours = double(Reformer(shape_of(22, bias=False), num_hashes=1, num_buckets=4, chunk_length=5))
    x, mask = inputs(22)

    def form(**published: Any) -> Tensor:
        return reformer_form(x, mask, ours, 5, **published)

    published = {
        "projected": False,
        "unit_keys": False,
        "scale": 4**0.5,
        "masked": False,
        "filled": True,
        "first_sees_last": True,
        "one_draw": True,
        "scrambled": True,
    }
    check(ours(x, mask), form, published, mask)
    dropping = Reformer(
        shape_of(22, bias=False, dropout=0.5), num_hashes=1, num_buckets=4, chunk_length=5
    ).double()
    dropping.load_state_dict(ours.state_dict())
    assert not torch.allclose(dropping(x, mask), ours(x, mask))
    torch.testing.assert_close(dropping.eval()(x, mask), ours(x, mask))


@shows("attention/lra/reformer", "a batch of short examples has fewer chunks")
def test_short_examples_have_fewer_chunks_in_reformer() -> None:
    ours = double(Reformer(shape_of(22), num_hashes=1, num_buckets=4, chunk_length=5))
    x, mask = inputs(22)
    short = mask & (torch.arange(22) < 9)
    assert ours.pad_invariant
    torch.testing.assert_close(ours(x[:, :9], short[:, :9])[short[:, :9]], ours(x, short)[short])


@shows("nystromformer", "Reformer keeps its rotations")
def test_reformer_keeps_its_rotations_has_biases_and_hides_the_last_chunk_from_the_first() -> None:
    ours = double(Reformer(shape_of(22), num_hashes=1, num_buckets=4, chunk_length=5))
    x, mask = inputs(22)
    before = ours.rotations.clone()
    first = ours.train()(x, mask)
    torch.testing.assert_close(ours(x, mask), first)
    assert torch.equal(ours.rotations, before) and ours.projections.qkv.bias is not None

    def form(**published: Any) -> Tensor:
        return reformer_form(x, mask, ours, 5, **published)

    check(first, form, {"first_sees_last": True}, mask)


@shows("nystromformer", "Reformer's first digit of a bucket counts most")
def test_reformers_first_digit_counts_most_but_least_in_the_published_code() -> None:
    qk = torch.randn(1, 1, 50, 4, dtype=torch.float64)
    rotations = torch.randn(1, 4, 1, 5, dtype=torch.float64)
    (ours,) = hash_buckets(qk, rotations, (4, 6))
    (fours,) = hash_buckets(qk, rotations[..., :2], (4,))
    (sixes,) = hash_buckets(qk, rotations[..., 2:], (6,))
    assert torch.equal(ours, 6 * fours + sixes)
    assert not torch.equal(ours, fours + 4 * sixes)
    two = load("protocol=nystromformer", "task=pathx", "attention=reformer")
    one = load("protocol=nystromformer", "task=listops", "attention=reformer")
    lengths = [config.model.max_length for config in (two, one)]
    assert [len(Reformer(shape_of(length)).factors) for length in lengths] == [2, 1]


# What holds for every backend of a protocol.


@shows("lra", "padding is masked as a key only")
@shows("task/lra/pathfinder", "the mean over all pixels includes the outputs at black pixels")
@shows("task/lra/pathx", "the mean over all pixels includes the outputs at black pixels")
def test_a_padded_query_attends_to_real_keys_not_uniformly_to_all_as_published() -> None:
    ours = double(Softmax(shape_of(20)))
    x, mask = inputs(20)

    def form(uniform: bool = False) -> Tensor:
        q, k, v = ours.projections.split(x)
        heads = attend(q, k, v, mask[:, None, None])
        if uniform:
            padded = ~mask[:, None, :, None]
            heads = torch.where(padded, v.mean(2, keepdim=True), heads)
        return ours.projections.merge(heads)

    check(ours(x, mask), form, {"uniform": True})
    # It shows in the mean over all positions, but not in that over real ones.
    torch.testing.assert_close(form(uniform=True)[mask], ours(x, mask)[mask])


class Seeing(nn.Module):
    """Keeps what it is given, and mixes nothing."""

    pad_invariant = True

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        self.seen = x, mask
        return torch.zeros_like(x)


@shows("lra", "the classification token is always real")
@shows("wavspa", "the classification token is always real")
def test_the_classification_token_is_real_even_before_a_black_pixel() -> None:
    sizes = {"dim": 8, "heads": 2, "head_dim": 4, "mlp_dim": 8, "max_length": 9, "vocab_size": 5}
    encoder = Encoder(ModelConfig(layers=1, pooling="cls", **sizes), Seeing)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 0] = False
    encoder(torch.randint(5, (2, 9)), mask)
    _, seen = encoder.blocks[0].attention.seen
    published = torch.cat([mask[:, :1], mask], 1)
    assert seen[:, 0].all() and torch.equal(seen[:, 1:], mask)
    assert not torch.equal(seen, published) and torch.equal(seen[1], published[1])


@shows("wavspa", "padding enters the transform as zeros")
def test_padding_in_wavspa_enters_the_transform_as_zeros_not_as_the_bias_of_the_norm() -> None:
    words = ["protocol=wavspa", "task=listops", "attention=wavspa", "model.layers=1"]
    model = build_model(load(*words, "model.max_length=64", "task.truncate=64")).eval()
    block = model.encoder.blocks[0]
    with torch.no_grad():
        block.attention_norm.bias.fill_(0.5)
    ours = block.attention
    x, mask = torch.randn(2, 65, 128), torch.arange(65) < torch.tensor([[65], [40]])
    normed = block.attention_norm(x.masked_fill(~mask[..., None], 0.0))
    assert (normed[~mask] == 0.5).all()
    as_zeros = ours(normed.masked_fill(~mask[..., None], 0.0), None)
    torch.testing.assert_close(ours(normed, mask), as_zeros)
    assert not torch.allclose(ours(normed, None)[mask], as_zeros[mask])


@shows("lra", "Image is divided")
@shows("nystromformer", "Image is divided")
@shows("wavspa", "Image is divided")
@shows("lru", "Image is divided")
@shows("mega", "Image is divided")
@shows("s4", "Image is divided")
@shows("s4_small", "Image is divided")
@shows("s5", "Image is divided")
@shows("task/lra/image", "the first 45,000 images of the official batch files")
@shows("task/nystromformer/image", "the first 45,000 images of the official batch files")
@shows("task/wavspa/image", "the first 45,000 images of the official batch files")
@shows("task/lru/image", "the first 45,000 images of the official batch files")
@shows("task/mega/image", "the first 45,000 images of the official batch files")
@shows("task/s4/image", "the first 45,000 images of the official batch files")
@shows("task/s4_small/image", "the first 45,000 images of the official batch files")
@shows("task/s5/image", "the first 45,000 images of the official batch files")
def test_training_and_validation_images_follow_the_order_of_the_batch_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each picture is one pixel of three colours, with its number as the label.
    numbers = {"train": np.arange(50_000), "test": np.arange(10_000)}
    read = {
        part: (np.zeros((len(n), 1, 3), np.uint8), n.astype(np.int64))
        for part, n in numbers.items()
    }
    monkeypatch.setattr(cifar10, "read", lambda source, part: read[part])
    monkeypatch.setattr(image, "grey", lambda pictures: pictures[..., 0])
    taken: dict[str, list[int]] = {"train": [], "validation": [], "test": []}

    class Numbers:
        def __init__(self, split: str) -> None:
            self.split = split

        def add(self, label: int, *_: Any) -> None:
            taken[self.split].append(label)

    monkeypatch.setattr(cifar10, "verdict", lambda *_: "")
    source = cifar10.Source("published", "numbers for pictures")
    image.Image().write(source, {split: Numbers(split) for split in taken})
    assert taken["train"] == [*range(45_000)]
    assert taken["validation"] == [*range(45_000, 50_000)]
    assert taken["test"] == [*range(10_000)]


@shows("mega", "Image becomes grey")
@shows("s4", "Image becomes grey")
@shows("s4_small", "Image becomes grey")
@shows("s5", "Image becomes grey")
def test_grey_is_cut_off_where_torchvision_rounds() -> None:
    colours = np.random.default_rng(0).integers(256, size=(1, 20_000, 3), dtype=np.uint8)
    # PIL's weights, by which torchvision converts, in 65,536ths.
    rounded = (colours @ np.array([19595, 38470, 7471]) + 32768) // 65536
    below = rounded - image.grey(colours)
    assert set(below.ravel().tolist()) == {0, 1}
    assert below.mean() == pytest.approx(0.26, abs=0.02)


@shows("s5", "Text and Retrieval are bytes instead of characters")
def test_the_table_of_bytes_in_s5_starts_with_a_smaller_spread_than_that_of_characters() -> None:
    for task in ("text", "retrieval"):
        model = load("protocol=s5", f"task={task}", "attention=s5").model
        assert model.embedding_std == pytest.approx(model.vocab_size**-0.5, rel=1e-3)
        assert model.embedding_std < 135**-0.5


@shows("task/lra/listops", "token ids have a fixed order")
def test_token_ids_of_listops_do_not_depend_on_the_hash_seed_of_a_process() -> None:
    code = "from lra.tasks.listops_generator import SYMBOLS; print(list(SYMBOLS))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=CONFIGS.parent,
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(printed) == 1 and len(printed.pop()) > 40


@shows("wavspa", "no early stopping")
def test_a_run_that_never_improves_makes_all_its_updates(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    # Validated every 5 of 60 updates; the published code stops after a tenth without progress.
    words = ["train.learning_rate=1e-12", "train.validate_every=5", "attention=fourier"]
    record = run_cell(configure(tmp_path, *words), folder)
    assert record is not None and record.best_step == 5 and record.steps == 60


# The protocols of state-space layers.


def schedule_of(protocol: str, task: str) -> tuple[TrainConfig, Callable[[int], float]]:
    """Return a recipe's training options, and its rate as a function of the updates made."""
    train = load(f"protocol={protocol}", f"task={task}").train
    factor = optimiser_for(nn.Linear(2, 2), train)[1].lr_lambdas[0]
    return train, lambda step: train.learning_rate * factor(step)


@shows("lru", "the rate starts and ends at 0")
@shows("mega", "the rate starts at 0")
@pytest.mark.parametrize("protocol", ["lru", "mega"])
@pytest.mark.parametrize("task", ["listops", "pathx"])
def test_the_rate_starts_at_0_and_not_slightly_above(protocol: str, task: str) -> None:
    train, rate = schedule_of(protocol, task)
    w, peak, last = train.warmup_steps, train.learning_rate, train.steps
    steps = [0, 1, w // 2, w, (w + last) // 2, last - 1, last]

    def form(start: float = 0.0, end: float = 0.0) -> list[float]:
        rates = []
        for step in steps:
            p = (step - w) / (last - w)
            down = (1 + math.cos(math.pi * p)) / 2 if protocol == "lru" else 1 - p
            up = start + (peak - start) * (step / w) ** train.warmup_power
            rates.append(up if step < w else end + (peak - end) * down)
        return rates

    ours = [rate(step) for step in steps]
    close = {"rel": 1e-9, "abs": 1e-12}
    assert ours == pytest.approx(form(), **close) and ours[0] == 0
    assert ours != pytest.approx(form(start=1e-7), **close)
    if protocol == "lru":
        assert ours[-1] == 0 and ours != pytest.approx(form(end=1e-7), **close)


@shows("s5", "half a cosine from the peak to 0")
@pytest.mark.parametrize("task", ["listops", "retrieval", "image", "pathfinder", "pathx"])
def test_the_cosine_of_s5_begins_at_its_peak_and_ends_with_the_training(task: str) -> None:
    train, rate = schedule_of("s5", task)
    w, last = train.warmup_steps, train.steps

    def form(step: int, counted_from_0: bool = False) -> float:
        # The release counts the warm-up as steps of the cosine too.
        done = min(step, last - w) if counted_from_0 else step - w
        return train.learning_rate * (1 + math.cos(math.pi * done / (last - w))) / 2

    steps = [w, w + 1, (w + last) // 2, last - w, last - 1, last]
    assert [rate(step) for step in steps] == pytest.approx([form(step) for step in steps])
    assert rate(w) == train.learning_rate > form(w, counted_from_0=True)
    assert rate(last - w) > 0 == form(last - w, counted_from_0=True)


@shows("s5", "the first update has rate 0")
@shows("task/s5/text", "the warm-up is the first update")
@pytest.mark.parametrize("task", ["listops", "text", "retrieval", "image", "pathfinder", "pathx"])
def test_the_first_update_of_s5_has_rate_0_and_not_the_peak(task: str) -> None:
    train, rate = schedule_of("s5", task)
    peak, w = train.learning_rate, train.warmup_steps

    def form(update: int, set_after: bool = False) -> float:
        # In the release, each update sets the rate of the next one.
        return peak if set_after and update == 0 else peak * update / w

    updates = sorted({0, 1, w // 2, w})
    assert [rate(update) for update in updates] == pytest.approx([form(u) for u in updates])
    assert rate(0) == 0 != form(0, set_after=True)
    # With a warm-up of one update, that is all of it.
    assert (rate(1) == peak) == (w == 1) == (task == "text")


@shows("lru", "the paper tunes the base rate")
def test_the_rates_of_lru_are_one_base_rate_times_the_published_factors() -> None:
    factors = {"listops": 0.5, "text": 0.1, "retrieval": 0.5}
    factors |= {"image": 0.25, "pathfinder": 0.25, "pathx": 0.25}
    for task, factor in factors.items():
        train = load("protocol=lru", f"task={task}").train
        assert train.learning_rate == 0.004
        assert train.kernel_learning_rate == pytest.approx(factor * 0.004)


@shows("lru", "BatchNorm counts real positions, padding enters a layer as zeros and the mean")
@shows("mega", "BatchNorm counts real positions")
@shows("s4", "BatchNorm counts real positions")
@shows("s5", "BatchNorm counts real positions", "padding enters a layer as zeros")
@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        # In two directions, since one that sees only the past sees no padding.
        ("lru", ["task=text", "attention=lru", "attention.options.bidirectional=true"]),
        ("s5", ["task=text", "attention=s5"]),
        ("s4", ["task=text", "attention=s4d"]),
        ("mega", ["task=image", "attention=mega"]),
    ],
)
def test_padding_has_no_effect_on_norms_layers_and_mean_in_training(
    protocol: str, words: list[str]
) -> None:
    small = ["model.layers=2", "model.dim=32", "model.heads=1", "model.dropout=0.0"]
    config = load(f"protocol={protocol}", *words, *small)
    lengths = torch.tensor([[20], [11], [7]])
    tokens = torch.randint(1, 256, (3, 40)).masked_fill(torch.arange(40) >= lengths, 0)
    mask = torch.arange(40) < lengths

    def spread(as_released: bool = False, **changes: Any) -> float:
        """Return how much the logits change when padded to twice the length."""
        torch.manual_seed(0)
        model = build_model(replace(config, model=replace(config.model, **changes)))
        model.double().train()
        with torch.no_grad():
            for block in model.encoder.blocks:
                block.attention.as_released = as_released
                # As if learned: at 0, what a norm leaves under the mask is 0 too.
                for parameter in block.attention_norm.parameters():
                    parameter += 0.5
            short, long = model(tokens[:, :20], mask[:, :20]), model(tokens, mask)
        return float((short - long).abs().max())

    assert spread() < 1e-9
    for published in ({"norm_padding": True}, {"pooling": "mean_all"}):
        assert spread(**published) > 1e-4, published
    if protocol in ("lru", "s5"):
        assert spread(as_released=True) > 1e-4


@shows("lru", "the running statistics of BatchNorm take a tenth")
def test_statistics_of_lru_take_a_tenth_of_each_batch_and_those_of_flax_a_hundredth() -> None:
    words = ["protocol=lru", "task=image", "attention=lru", "model.layers=1", "model.dim=8"]
    tokens = torch.randint(0, 256, (3, 40))

    def remembered(*more: str) -> Tensor:
        torch.manual_seed(0)
        model = build_model(load(*words, "model.heads=1", *more)).train()
        # Running means start at 0, so they become that share of the batch's.
        model(tokens)
        return model.encoder.blocks[0].attention_norm.running_mean

    model = build_model(load(*words, "model.heads=1"))
    mean = model.encoder.embedding(tokens).detach().flatten(0, 1).mean(0)

    def form(share: float = 0.1) -> Tensor:
        return share * mean

    torch.testing.assert_close(remembered(), form())
    torch.testing.assert_close(remembered("model.norm_momentum=0.01"), form(share=0.01))
    assert (form(share=0.01) - remembered()).abs().max() > 1e-2


@shows("s4", "the embedding of padding is a row of its own")
def test_padding_in_s4_has_a_row_of_the_table_and_enters_a_layer_as_zeros() -> None:
    model = build_model(load("protocol=s4", "task=text", "attention=s4d", "model.layers=1")).eval()
    table = model.encoder.embedding.tokens.weight
    # 256 bytes and padding.
    assert len(table) == 257 and table[0].abs().max() > 0
    assert torch.equal(model.encoder.embedding(torch.tensor([[0]]))[0, 0], table[0])
    layer = model.encoder.blocks[0].attention
    x, mask = torch.randn(2, 20, 256), torch.arange(20) < torch.tensor([[20], [16]])
    as_zeros = layer(x.masked_fill(~mask[..., None], 0.0), None)
    torch.testing.assert_close(layer(x, mask), as_zeros)
    assert not torch.allclose(layer(x, None)[mask], as_zeros[mask])


@shows("lru", "the table of symbols has no bias")
@shows("s5", "the table of symbols has no bias")
@pytest.mark.parametrize("protocol", ["lru", "s5"])
@pytest.mark.parametrize("task", ["listops", "text", "retrieval"])
def test_a_symbol_is_embedded_as_its_row_of_the_table_without_a_bias(
    protocol: str, task: str
) -> None:
    words = [f"protocol={protocol}", f"task={task}", "model.layers=1"]
    embedding = build_model(load(*words, f"attention={protocol}")).encoder.embedding
    [(name, table)] = embedding.named_parameters()
    assert name == "tokens.weight"
    symbols = torch.arange(len(table))[None]
    assert torch.equal(embedding(symbols)[0], table)


@shows("s4", "the kernel is S4D's (diagonal)")
def test_the_kernel_of_s4_is_diagonal_without_the_rank_one_term_of_the_release() -> None:
    words = ["protocol=s4", "task=image", "attention=s4d", "model.layers=1", "model.dim=4"]
    config = load(*words, "model.heads=1", "attention.options.states=16")
    ours = build_model(config).encoder.blocks[0].attention.double()
    assert ours.discretisation == "zoh"
    _, vectors = legs_spectrum(16)
    # In the eigenbasis of the normal part, with the conjugates.
    p = torch.tensor(vectors).mH @ (torch.arange(16.0).double() + 0.5).sqrt().to(torch.complex128)
    modes = torch.complex(-ours.decay.exp(), ours.frequency)[0]
    b, c = (torch.view_as_complex(t) for t in (ours.b[0], ours.c[0]))
    modes, b, p = (torch.cat([t, t.conj()]) for t in (modes, b, p))
    c = torch.cat([c, c.conj()], 1)
    steps = nn.functional.softplus(ours.step)

    def form(rank_one: float = 0.0) -> Tensor:
        a = torch.diag(modes) - rank_one * torch.outer(p, p.conj())
        kernels = []
        for h, step in enumerate(steps):
            a_bar = torch.linalg.matrix_exp(step * a)
            state = torch.linalg.solve(a, (a_bar - torch.eye(16)) @ b)
            kernel = []
            for _ in range(30):
                kernel.append((c[h] @ state).real)
                state = a_bar @ state
            kernels.append(torch.stack(kernel))
        return torch.stack(kernels)

    check(ours.kernels(30)[0], form, {"rank_one": 1.0})


def statements(file: str) -> list[str]:
    """Return the deviations that a file itself states."""
    if file.count("/") == 1:
        # All protocols have a recipe for Image.
        return list(load(f"protocol={Path(file).stem}", "task=image").protocol.deviations)
    (text,) = [text for word, text in parts(file) if word == "Deviations"]
    text = re.sub(r"\. The published plain figures.*", "", text).removesuffix(".")
    each = [statement.strip() for statement in text.split(";")]
    nothing = ("those of", "none of its own", "no paper has this task", "the whole recipe is ours")
    return [s for s in each if not s.startswith(nothing)]


@pytest.mark.parametrize(
    "file",
    [str(file.relative_to(CONFIGS)) for file in sorted((CONFIGS / "protocol").rglob("*.yaml"))],
)
def test_every_stated_deviation_is_shown(file: str) -> None:
    beginnings = [*SHOWN[file], *ELSEWHERE.get(file, {})]
    missing = [s for s in statements(file) if not s.startswith(tuple(beginnings))]
    assert not missing, f"no test shows: {missing}"
    stale = [b for b in beginnings if not any(s.startswith(b) for s in statements(file))]
    assert not stale, f"no longer stated: {stale}"


def test_the_tests_named_for_deviations_shown_elsewhere_exist() -> None:
    written = "".join(file.read_text() for file in TESTS.glob("test_*.py"))
    for tests in ELSEWHERE.values():
        for name in " ".join(tests.values()).split():
            assert f"\ndef {name}" in written, name
