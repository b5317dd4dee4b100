"""The GPT-2 on binary rows, the small Llama, and loading any causal language model."""

from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

logging.disable_progress_bar()  # loading a model of two megabytes needs no progress bar


#: What a position may attend to. "causal": itself and what came before. "published": everything, with 1 added to the
#: attention scores of itself and the past, which is what the published code of "Intelligence at the Edge of Chaos" does
#: with the library version that it pins: it hands a triangle of 0 and 1 to a function that adds it.
Mask = Literal["causal", "published"]


def through_blocks(body: GPT2Model, embedded: Tensor, mask: Mask) -> Tensor:
    """What GPT-2's blocks make of embedded positions, `(B, T, hidden)` both."""
    length = embedded.shape[1]
    if length > body.wpe.num_embeddings:
        raise ValueError(f"{length} rows are more than the {body.wpe.num_embeddings} positions that the model has")
    if mask == "causal":
        return body(inputs_embeds=embedded).last_hidden_state
    added = torch.ones(length, length, dtype=embedded.dtype, device=embedded.device).tril()
    return body(inputs_embeds=embedded, attention_mask=added.expand(len(embedded), 1, -1, -1)).last_hidden_state


class RowGPT(nn.Module):
    """GPT-2 blocks between two linear layers: one position is one row of cells, with no token embedding.

    With `mask="causal"` the output at position t sees rows 0…t only; `mask="published"` lets the future through (see
    `Mask`), for comparison. Input `(B, T, inputs)` floats, output logits `(B, T, outputs)`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        layers: int,
        heads: int,
        hidden: int,
        rows: int,
        seed: int,
        mask: Mask = "causal",
    ):
        super().__init__()
        if mask not in get_args(Mask):
            raise ValueError(f"mask must be one of {', '.join(get_args(Mask))}; got {mask!r}")
        if hidden % heads:
            raise ValueError(f"hidden ({hidden}) must be a multiple of heads ({heads})")
        config = GPT2Config(
            vocab_size=1,
            n_positions=rows,
            n_embd=hidden,
            n_layer=layers,
            n_head=heads,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = GPT2Model(config)
            self.input = nn.Linear(inputs, hidden)
            self.output = nn.Linear(hidden, outputs)
        self.body.wte = nn.Identity()  # rows come in as vectors: nothing looks a token up
        self.mask = mask

    def forward(self, rows: Tensor) -> Tensor:
        return self.output(through_blocks(self.body, self.input(rows), self.mask))


class TaskGPT(nn.Module):
    """A RowGPT's blocks under new ends for a downstream task.

    Boards `(B, T, cells)` of integers go through a new linear layer, tokens `(B, T)` through a new embedding; the
    output is `(B, T, cells, classes)` or `(B, T, classes)`. The new ends and, for longer sequences than the body has
    positions for, new positions are drawn from `seed`.
    """

    def __init__(
        self,
        body: GPT2Model,
        kind: Literal["boards", "tokens"],
        *,
        cells: int,
        classes: int,
        length: int,
        seed: int,
        mask: Mask = "causal",
    ):
        super().__init__()
        hidden = body.config.n_embd
        self.kind, self.cells, self.classes, self.mask = kind, cells, classes, mask
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.input = nn.Linear(cells, hidden) if kind == "boards" else nn.Embedding(classes, hidden)
            self.output = nn.Linear(hidden, cells * classes if kind == "boards" else classes)
            if length > body.config.n_positions:
                longer = nn.Embedding(length, hidden)
                nn.init.normal_(longer.weight, std=body.config.initializer_range)
                longer.weight.data[: body.config.n_positions] = body.wpe.weight.data
                body.wpe = longer
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.input(x.float() if self.kind == "boards" else x)
        logits = self.output(through_blocks(self.body, embedded, self.mask))
        return logits.unflatten(-1, (self.cells, self.classes)) if self.kind == "boards" else logits


def small_llama(seed: int) -> LlamaForCausalLM:
    """A Llama of about half a million parameters with grouped-query attention, for the seven symbolic tasks.

    Eight layers of hidden size 64, 8 query heads of 16 on 4 key/value heads, SwiGLU of 192, vocabulary 50. Heads as
    wide as 16 and a rope base as small as 100 suit sequences of some twenty tokens.
    """
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        initializer_range=0.02,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def load_causal_lm(place: str | Path) -> PreTrainedModel:
    """A causal language model from a folder (or hub name) that transformers loads; safetensors only, in eval mode.

    Raises:
        ValueError: the folder holds a pruned checkpoint, which `pruning.load_pruned` loads.
        OSError: there is no such folder, and the hub cannot be reached or knows no such name.
    """
    if (Path(place) / "pruning.json").is_file():
        raise ValueError(f"{place} holds a pruned checkpoint: load it with rules2ranks.pruning.load_pruned")
    try:
        return AutoModelForCausalLM.from_pretrained(place, use_safetensors=True, dtype=torch.float32).eval()
    except OSError as error:
        if Path(place).is_dir():
            raise
        raise OSError(f"there is no folder {place}, and the hub gave no model of that name: {error}") from error


def save_weights(model: nn.Module, path: Path) -> None:
    """All of a module's parameters and buffers as one safetensors file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Weights written by `save_weights`, into a module of exactly those names and shapes, in place.

    Raises:
        RuntimeError: a name or a shape does not fit; torch's message lists them.
    """
    model.load_state_dict(load_file(path), strict=True)


def shuffle_weights(model: nn.Module, seed: int) -> None:
    """Shuffle the entries within every weight matrix, in place: the same scale and histogram, nothing learnt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                order = torch.randperm(p.numel(), generator=generator).to(p.device)
                p.copy_(p.flatten()[order].view_as(p))


def parameter_count(model: nn.Module) -> int:
    """The number of a module's parameters, trained or not."""
    return sum(p.numel() for p in model.parameters())
