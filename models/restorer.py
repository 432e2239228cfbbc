"""What an encoder is pretrained by: to say which token stands at a position that does not show it.

Amos, Berant and Gupta (arXiv 2310.02980): hidden tokens are all replaced by one learned vector, and
a linear layer answers at every position from the encoder's last states. There is no pooling.

Axes: B batch, S sequences per example (absent where it is 1), N length, D model width.
"""

import torch
from torch import Tensor, nn

from models.encoder import Encoder

# Stands for a token that is hidden.
HIDDEN = -1
# Tokens that an encoder is probed with, where it takes fewer than its padded length.
PROBE = 64
# Of a change, the share that reaches positions before it: rounding stays below, all else above.
REACHES_BACK = 1e-3


class Restorer(nn.Module):
    """An encoder that is trained, and a linear layer on its states.

    Args:
        encoder: Of a classifier, whose own head stays as it is.
        outputs: Numbers at each position: logits of symbols, or 1 for a grey value.
        std: Standard deviation of the learned vector at the start.
    """

    parameter_roles = {"hidden": "embedding"}

    def __init__(self, encoder: Encoder, outputs: int, std: float) -> None:
        super().__init__()
        self.encoder = encoder
        dim = encoder.embedding.dim
        self.hidden = nn.Parameter(torch.empty(dim).normal_(std=std))
        self.head = nn.Linear(dim, outputs)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Answer at every position.

        Args:
            tokens: `(B, N)` or `(B, S, N)` int64, `HIDDEN` where a token is hidden.
            mask: The same shape, True for real tokens, hidden ones among them; None when all are.

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
    """Tell whether no position sees what follows it, by changing the last token of a sequence."""
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
