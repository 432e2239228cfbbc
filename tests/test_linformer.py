from functools import partial

import pytest
import torch

from models.ema import EMA
from models.encoder import Encoder
from models.fourier_space import FourierSpace
from models.heads import AttentionShape
from models.linformer import Linformer, linformer_attention, linformer_attention_reference
from models.sizes import ModelConfig
from models.softmax import softmax_attention
from models.wavspa import WavSpA


@pytest.mark.parametrize("length", [1, 7, 29])
@pytest.mark.parametrize("masked", [False, True])
def test_fast_and_plain_forms_agree_in_values_and_all_gradients(length: int, masked: bool) -> None:
    inputs = [torch.randn(3, 2, length, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
    projections = [torch.randn(2, 3, 31, dtype=torch.float64).requires_grad_() for _ in range(2)]
    mask = torch.rand(3, length) < 0.6 if masked else None
    if mask is not None:
        mask[2] = False
    results = [
        form(*inputs, mask, *projections)
        for form in (linformer_attention, linformer_attention_reference)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=1e-12)
    gradients = [
        torch.autograd.grad(result.square().sum(), inputs + projections) for result in results
    ]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-11)


def test_identity_projections_give_softmax_attention() -> None:
    q, k, v = torch.randn(3, 2, 3, 11, 5, dtype=torch.float64)
    eye = torch.eye(11, dtype=torch.float64).expand(3, 11, 11)
    torch.testing.assert_close(
        linformer_attention(q, k, v, None, eye, eye), softmax_attention(q, k, v, None)
    )


def test_keys_and_values_share_their_projection_unless_told_otherwise() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=19)
    shared, apart = Linformer(shape, rank=5), Linformer(shape, rank=5, shared=False)
    assert shared.to_values is None
    assert apart.to_values.shape == apart.to_keys.shape == (2, 5, 19)
    assert not torch.equal(apart.to_values, apart.to_keys)
    apart.load_state_dict(shared.state_dict() | {"to_values": shared.to_keys})
    x = torch.randn(2, 17, 8)
    torch.testing.assert_close(shared(x), apart(x))


def test_one_projection_for_all_heads_equals_a_copy_of_it_for_each_head() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=19)
    one, each = Linformer(shape, rank=5, per_head=False), Linformer(shape, rank=5)
    assert one.to_keys.shape == (1, 5, 19)
    each.load_state_dict(one.state_dict() | {"to_keys": one.to_keys.expand(2, 5, 19)})
    x, mask = torch.randn(2, 17, 8), torch.rand(2, 17) < 0.6
    torch.testing.assert_close(one(x, mask), each(x, mask))
    q, k, v = one.projections.split(x)
    plain = linformer_attention_reference(q, k, v, mask, *[one.to_keys.expand(2, 5, 19)] * 2)
    torch.testing.assert_close(one(x, mask), one.projections.merge(plain))


def test_projections_start_with_the_published_standard_deviation() -> None:
    shape = AttentionShape(dim=8, heads=2, head_dim=4, max_length=500)
    # 128,000 draws: the standard deviation is known to 0.2 per cent.
    assert abs(Linformer(shape, rank=128).to_keys.std() / 0.02 - 1) < 0.01
    assert abs(Linformer(shape, rank=128, spread=0.5).to_keys.std() / 0.5 - 1) < 0.01
    assert abs(Linformer(shape, rank=128, spread=None).to_keys.std() * 128**0.5 - 1) < 0.01


def models_with(attention) -> list[Encoder]:
    sizes = {"dim": 8, "heads": 2, "head_dim": 4, "mlp_dim": 8, "max_length": 20, "vocab_size": 5}
    config = ModelConfig(layers=3, dropout=0.0, attention_dropout=0.0, **sizes)
    built = []
    for share_layers in (False, True):
        torch.manual_seed(0)
        built.append(Encoder(config, partial(attention, share_layers=share_layers)))
    return built


def test_layers_that_share_have_one_projection_and_train_it_together() -> None:
    apart, shared = models_with(partial(Linformer, rank=4, shared=False))
    attentions = [block.attention for block in shared.blocks]
    assert attentions[0].to_keys is attentions[1].to_keys is attentions[2].to_keys
    assert attentions[0].to_values is attentions[2].to_values
    sizes = [sum(p.numel() for p in model.parameters()) for model in (apart, shared)]
    assert sizes[0] - sizes[1] == 2 * 2 * attentions[0].to_keys.numel()
    for block in apart.blocks:
        block.attention.to_keys = attentions[0].to_keys
        block.attention.to_values = attentions[0].to_values
    batch = torch.randint(5, (2, 11)), torch.rand(2, 11) < 0.7
    torch.testing.assert_close(apart(*batch), shared(*batch))
    other = models_with(partial(Linformer, rank=4, shared=False))[1]
    other.load_state_dict(shared.state_dict())
    torch.testing.assert_close(other(*batch), shared(*batch))


@pytest.mark.parametrize("around", [WavSpA, FourierSpace, EMA])
def test_layers_share_projections_inside_another_backend(around) -> None:
    def attention(shape, *, share_layers):
        inside = partial(Linformer, rank=4, share_layers=share_layers)
        return around(shape, inner=inside)

    apart, shared = models_with(attention)
    sizes = [len(list(model.parameters())) for model in (apart, shared)]
    assert sizes[0] - sizes[1] == (2 * 2 if around is WavSpA else 2)
