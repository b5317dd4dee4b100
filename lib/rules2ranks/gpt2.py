"""GPT-2's blocks in plain torch: the same numbers and names as transformers' own, and they show their attention.

Parameters are named and shaped as in transformers' `GPT2Model` (matrices as `Conv1D`, inputs × outputs), so that
pruning and LoRA find what they know, and weights go from one to the other as they are.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from rules2ranks import cpu

#: What a position may attend to. "causal": itself and what came before. "published": everything, with 1 added to the
#: attention scores of itself and the past, which is what the published code of "Intelligence at the Edge of Chaos" does
#: with the library version that it pins: it hands a triangle of 0 and 1 to a function that adds it.
Mask = Literal["causal", "published"]
_STD = 0.02  # of initial weights, in GPT-2


class Attention(nn.Module):
    """Multi-head self-attention. Gives what it mixed, `(B, T, hidden)`, and its weights, `(B, heads, T, T)`.

    Written out rather than through torch's fused attention: as fast at some sixty positions, and it shows its weights.
    """

    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.c_attn, self.c_proj = cpu.Conv1D(3 * hidden, hidden), cpu.Conv1D(hidden, hidden)
        self.head_dim = hidden // heads

    def forward(self, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        # The number of heads follows from the weights: some may have been pruned away.
        mixed, weights = cpu.attention(self.c_attn(x), added, self.head_dim)
        return self.c_proj(mixed), weights


class MLP(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.c_fc, self.c_proj = cpu.Conv1D(4 * hidden, hidden), cpu.Conv1D(hidden, 4 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(cpu.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.attn, self.mlp = Attention(hidden, heads), MLP(hidden)

    def forward(self, x: Tensor, added: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), added)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    """Learnt positions, `layers` blocks and a last norm: embedded positions `(B, T, hidden)` in, as many out.

    Raises:
        ValueError: `hidden` is no multiple of `heads`; a mask that there is not; more positions than were learnt.
    """

    def __init__(self, layers: int, heads: int, hidden: int, positions: int, mask: Mask = "causal"):
        super().__init__()
        if hidden % heads:
            raise ValueError(f"hidden ({hidden}) must be a multiple of heads ({heads})")
        self.hidden = hidden
        self.wpe = nn.Embedding(positions, hidden)
        self.h = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(hidden)
        for name, p in self.named_parameters():
            if p.ndim > 1:
                # The residual stream adds up two outputs a layer: each is drawn as much smaller (GPT-2, section 2.3).
                nn.init.normal_(p, std=_STD / (2 * layers) ** 0.5 if name.endswith("c_proj.weight") else _STD)
        self.set_mask(mask)

    @property
    def positions(self) -> int:
        """The most positions that a sequence may have."""
        return self.wpe.num_embeddings

    def set_mask(self, mask: Mask) -> None:
        """Say what a position may attend to; see `Mask`."""
        if mask not in get_args(Mask):
            raise ValueError(f"mask must be one of {', '.join(get_args(Mask))}; got {mask!r}")
        past = torch.ones(self.positions, self.positions, device=self.wpe.weight.device).tril()
        added = past if mask == "published" else torch.zeros_like(past).masked_fill(past == 0, -torch.inf)
        self.register_buffer("added", added, persistent=False)
        self.mask = mask

    def lengthen(self, positions: int) -> None:
        """Draw new positions behind those that were learnt, up to `positions` in all; fewer than there are: nothing."""
        if positions > self.positions:
            learnt, self.wpe = self.wpe, nn.Embedding(positions, self.hidden, device=self.wpe.weight.device)
            nn.init.normal_(self.wpe.weight, std=_STD)
            self.wpe.weight.data[: learnt.num_embeddings] = learnt.weight.data
            self.set_mask(self.mask)

    def forward(self, embedded: Tensor) -> Tensor:
        length = embedded.shape[1]
        if length > self.positions:
            raise ValueError(f"{length} rows are more than the {self.positions} positions that the model has")
        x = embedded + self.wpe.weight[:length]
        added = self.added[:length, :length].to(x.dtype)
        for block in self.h:
            x = block(x, added)
        return self.ln_f(x)
