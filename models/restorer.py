"""The pretraining task of an encoder: to predict the token at a position that does not show it.

Amos, Berant and Gupta (arXiv 2310.02980): all hidden tokens are replaced by one learned vector, and
a linear layer predicts at every position from the encoder's last states. There is no pooling.

Axes: B batch, S sequences per example (absent if it is 1), N length, D model width.
"""

import torch
from torch import Tensor, nn

from models.encoder import Encoder

# Stands for a hidden token.
HIDDEN = -1
# Tokens with which an encoder is probed, if it takes fewer than its padded length.
PROBE = 64
# Share of a change that reaches earlier positions: rounding stays below it, all else is above.
REACHES_BACK = 1e-3


class Restorer(nn.Module):
    """An encoder to be trained, and a linear layer on its states.

    Args:
        encoder: Encoder of a classifier, whose own head stays unchanged.
        outputs: Number of outputs at each position: logits of symbols, or 1 for a grey value.
        std: Initial standard deviation of the learned vector.
    """

    parameter_roles = {"hidden": "embedding"}

    def __init__(self, encoder: Encoder, outputs: int, std: float) -> None:
        super().__init__()
        self.encoder = encoder
        dim = encoder.embedding.dim
        self.hidden = nn.Parameter(torch.empty(dim).normal_(std=std))
        self.head = nn.Linear(dim, outputs)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predict at every position.

        Args:
            tokens: `(B, N)` or `(B, S, N)` int64, `HIDDEN` where a token is hidden.
            mask: The same shape, True for real tokens, including hidden ones; None when all are.

        Returns:
            `(B, N, outputs)` or `(B, S, N, outputs)`.
        """
        flat, flat_mask = tokens, mask
        if tokens.dim() == 3:
            flat, flat_mask = tokens.flatten(0, 1), None if mask is None else mask.flatten(0, 1)
        embedding = self.encoder.embedding
        x = embedding.tokens(flat.clamp(min=0))
        x = x.where((flat != HIDDEN)[..., None], self.hidden.to(x.dtype))
        x = self.encoder.states(embedding.placed(x), flat_mask)
        if embedding.cls is not None:
            x = x[:, 1:]
        answers: Tensor = self.head(x)
        return answers.reshape(*tokens.shape, -1)


@torch.no_grad()
def is_causal(encoder: Encoder) -> bool:
    """Return whether no position sees later ones, by changing the last token of a sequence."""
    device = next(encoder.parameters()).device
    table = encoder.embedding.tokens
    symbols = table.num_embeddings if isinstance(table, nn.Embedding) else 256
    length = encoder.padded_length
    if encoder.pad_invariant:
        length = min(PROBE, length)
    tokens = torch.arange(length, device=device).repeat(2, 1) % symbols
    tokens[1, -1] = (tokens[1, -1] + 1) % symbols
    was_training = encoder.training
    encoder.eval()
    first, second = encoder.states(encoder.embedding(tokens), None).double()
    encoder.train(was_training)
    change = (first - second).square().sum(-1).sqrt()
    reached = change[:-1].square().sum().sqrt()
    return bool(reached < REACHES_BACK * change[-1])
