"""The GPT-2 on binary rows, the small Llama, and loading any causal language model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging

from rules2ranks import checkpoints, cpu
from rules2ranks.decoders import causal_lm, check_architecture, skeleton
from rules2ranks.gpt2 import Blocks, Mask

logging.disable_progress_bar()  # loading a model of two megabytes needs no progress bar

#: Layers, heads and hidden size. "tiny", "small" and "large" are the paper's; "laptop" is what most of ours use.
SIZES = {
    "tiny": {"layers": 1, "heads": 1, "hidden": 64},
    "laptop": {"layers": 2, "heads": 4, "hidden": 64},
    "small": {"layers": 12, "heads": 12, "hidden": 768},
    "large": {"layers": 36, "heads": 20, "hidden": 1280},
}
#: The types of weights that a model is loaded in.
Dtype = Literal["float32", "bfloat16"]
#: No code from a model's folder is ever run, and nothing is fetched behind `checkpoints.find`.
_LOCAL = {"trust_remote_code": False, "local_files_only": True}
#: Buffers that old checkpoints hold and models make anew: masks and rotary frequencies.
_OLD_BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$")
#: How a board's cells go in: as the numbers that they are, or as one 0 or 1 for each value that a cell may have.
BoardInput = Literal["integers", "one-hot"]


class RowGPT(nn.Module):
    """GPT-2 blocks between two linear layers: one position is one row of cells, with no token embedding.

    With `mask="causal"` the output at position t sees rows 0…t only; `mask="published"` lets the future through (see
    `Mask`), for comparison. Input `(B, T, inputs)` floats, output logits `(B, T, outputs)`. No dropout: every step of
    pretraining sees fresh rows.
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
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = Blocks(layers, heads, hidden, rows, mask)
            self.input = cpu.Linear(inputs, hidden)
            self.output = cpu.Linear(hidden, outputs)

    def forward(self, rows: Tensor) -> Tensor:
        return self.output(self.body(self.input(rows)))


class TaskGPT(nn.Module):
    """A RowGPT's blocks under new ends for a downstream task.

    Boards `(B, T, cells)` of integers go through a new linear layer, as they are or one-hot; tokens `(B, T)` through a
    new embedding. The output is `(B, T, cells, classes)` or `(B, T, classes)`. The new ends and, for longer sequences
    than the body has positions for, new positions are drawn from `seed`.
    """

    def __init__(
        self,
        body: Blocks,
        kind: Literal["boards", "tokens"],
        *,
        cells: int,
        classes: int,
        length: int,
        seed: int,
        board_input: BoardInput = "integers",
    ):
        super().__init__()
        self.kind, self.cells, self.classes, self.board_input = kind, cells, classes, board_input
        width = cells * classes if board_input == "one-hot" else cells
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.input = cpu.Linear(width, body.hidden) if kind == "boards" else nn.Embedding(classes, body.hidden)
            self.output = cpu.Linear(body.hidden, cells * classes if kind == "boards" else classes)
            body.lengthen(length)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "boards":
            x = F.one_hot(x, self.classes).flatten(-2).float() if self.board_input == "one-hot" else x.float()
        logits = self.output(self.body(self.input(x)))
        return logits.unflatten(-1, (self.cells, self.classes)) if self.kind == "boards" else logits


def step_bytes(batch: int, positions: int, layers: int, hidden: int, heads: int, outputs: int) -> float:
    """What the way back of one training step takes at least: some ten vectors and the attention of each position in
    each layer, and what the last layer puts out."""
    return 4.0 * batch * positions * (layers * (10 * hidden + heads * positions) + 4 * outputs)


def small_llama_config() -> LlamaConfig:
    """The shapes of `small_llama`: heads as wide as 16 and a rope base as small as 100 suit some twenty tokens."""
    return LlamaConfig(
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


def small_llama(seed: int) -> LlamaForCausalLM:
    """A Llama of about half a million parameters with grouped-query attention, for the seven symbolic tasks."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(small_llama_config())


def load_causal_lm(place: str | Path, dtype: Dtype = "float32") -> PreTrainedModel:
    """A causal language model from a folder (or hub name) that transformers loads, in eval mode, on the CPU.

    Safetensors only, and no code from the model's folder is ever run. What is not in a folder or in the hub's cache is
    downloaded where the hub can be reached. Before any weights are read, the architecture is tried (see
    `decoders.check_architecture`).

    Raises:
        ValueError: a pruned checkpoint (`pruning.load_pruned` loads it), a quantised one, no causal language model, one
            that cannot be pruned; or tensors that the configuration calls for are missing, or there are others.
        OSError: there is no such folder or name, or its weights are missing, damaged or pickled: says what to do.
    """
    folder = checkpoints.find(place)
    checkpoints.check(folder)
    check_architecture(AutoConfig.from_pretrained(folder, **_LOCAL))
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder, use_safetensors=True, dtype=getattr(torch, dtype), output_loading_info=True, **_LOCAL
        )
    except SafetensorError as error:
        raise OSError(f"the weights in {folder} are damaged: {error}") from error
    others = {name for name in found["unexpected_keys"] if not _OLD_BUFFERS.search(name)}
    wrong = []
    for what, names in (("lacks", sorted(found["missing_keys"])), ("also holds", sorted(others))):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            wrong.append(f"{what} {', '.join(names[:8])}{more}")
    if wrong:
        raise ValueError(f"{folder} does not hold the model that its config.json describes: it {' and '.join(wrong)}")
    return model.eval()


def causal_lm_skeleton(place: str | Path, dtype: Dtype = "float32") -> PreTrainedModel:
    """The model that `load_causal_lm` loads without its values: parameters on "meta". No weights are read.

    Raises:
        ValueError, OSError: as `load_causal_lm` of the configuration.
    """
    folder = checkpoints.find(place)
    checkpoints.check(folder)
    kind, config = causal_lm(AutoConfig.from_pretrained(folder, **_LOCAL))
    return skeleton(config, kind).to(getattr(torch, dtype))


def save_weights(model: nn.Module, path: Path) -> None:
    """All of a module's parameters and buffers as one safetensors file."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Weights written by `save_weights`, into a module of exactly those names and shapes, in place.

    Raises:
        ValueError: a damaged file; or a name or a shape does not fit, so it is of another architecture: says which.
    """
    weights = read_tensors(path)
    needed, held = ({name: tuple(t.shape) for name, t in of.items()} for of in (model.state_dict(), weights))
    if wrong := misfits(needed, held):
        raise ValueError(f"{path} holds a model of another architecture:\n{wrong}")
    model.load_state_dict(weights)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name; ValueError if it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def misfits(needed: Mapping[str, Any], held: Mapping[str, Any]) -> str:
    """Where what is known of a file's tensors is not what a model needs, a line for each; "" where all fits."""
    nothing = "no such tensor"
    return "\n".join(
        f"{name}: the model needs {needed.get(name, nothing)}, the file has {held.get(name, nothing)}"
        for name in sorted(needed.keys() | held.keys())
        if needed.get(name) != held.get(name)
    )


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
