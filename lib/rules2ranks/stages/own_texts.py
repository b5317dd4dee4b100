"""A model of your own with texts of your own: its parameters, and how a causal language model is scored on texts."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer

from rules2ranks import checkpoints, models, runs
from rules2ranks.decoders import decoder_layers
from rules2ranks.stages.ranges import Size
from rules2ranks.tasks import texts

Tokens = Annotated[int, Field(ge=2, le=1_000_000, description="tokens of a text")]

#: Raised where other numbers are made of the same files. 2: windows begin with the start token.
READING = "2"
_ALPACA_CLEANED = (
    "alpaca-cleaned, for example, is had by: hf download yahma/alpaca-cleaned alpaca_data_cleaned.json "
    "--repo-type dataset --local-dir data"
)


def fingerprints(model: str, data: str) -> dict[str, str]:
    """Digests of a model and of a file of texts, for `runs.OfFiles`; raises what is wrong with them."""
    file = Path(data).expanduser()
    if not file.is_file():
        raise ValueError(f"data: there is no file {file.absolute()}; {_ALPACA_CLEANED}")
    folder = checkpoints.find(model)
    checkpoints.check(folder)
    return {"model": checkpoints.fingerprint(folder), "data": checkpoints.sha256(file)[:16]}


class OwnModel(runs.OfFiles):
    """A causal language model of your own, with the texts that it is recovered on.

    `model` is a folder, or a name on the hub, as safetensors; README says which architectures work. `data` is a file
    that `tasks.texts` reads. Texts are cut off at `length` tokens; LLM-Pruner's default is to train on prompts, too. Of
    the texts `held_out` each are kept back for search and for reports.
    For importance `calibration_samples` windows of `calibration_length` tokens are drawn from the training texts:
    LLM-Pruner's sizes (it draws them from another corpus).
    `at_once` texts go through the model at a time: less needs less memory, and changes nothing but the order of sums.
    With `gradient_checkpointing` a decoder layer keeps its input only and is computed again in the backward pass: a
    third more time, far less memory, the same gradients.

    Raises:
        OSError: the model is not there (see `checkpoints.find`) or cannot be loaded (see `checkpoints.check`).
        ParameterError: so is the data file; the model is pruned or quantised; the files have changed.
    """

    model: str
    data: str
    length: Tokens = 256
    train_on_prompt: bool = True
    held_out: Size = 200
    calibration_samples: Size = 10
    calibration_length: Tokens = 64
    dtype: models.Dtype = "float32"
    at_once: Size = 8
    gradient_checkpointing: Annotated[bool, Field(exclude_if=lambda given: not given)] = False

    def fingerprints(self) -> dict[str, str]:
        return fingerprints(self.model, self.data) | {"reading": READING}


def tokenizer_of(model: str | Path) -> Any:
    """The tokenizer that lies beside a model.

    Raises:
        ValueError: there is none, or it cannot be loaded.
    """
    folder = checkpoints.find(model)
    if not checkpoints.tokenizer_files(folder):
        raise ValueError(f"{folder} holds no tokenizer: expected tokenizer.json, or what transformers makes one of")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def parts(batch: tuple[Tensor, ...], at_once: int | None) -> Iterator[tuple[Tensor, ...]]:
    """A batch in parts of at most so many examples."""
    if at_once is None or at_once >= len(batch[0]):
        yield batch
        return
    for begin in range(0, len(batch[0]), at_once):
        yield tuple(tensor[begin : begin + at_once] for tensor in batch)


def before_labels(labels: Tensor) -> Tensor:
    """Whether a label is to the right of a position, for all positions but the last: `(n, length - 1)`, boolean."""
    return (labels[:, 1:] != texts.IGNORED).flip(1).cumsum(1).flip(1) > 0


def used(labels: Tensor) -> int:
    """How many positions a causal model has to be fed: what lies to the right has no part in what is scored."""
    return int(before_labels(labels).any(0).sum())


def text_logits(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """The logits that predict the scored tokens, `(scored, vocabulary)` float32, in the order of `scored_tokens`."""
    end = used(labels)
    logits = model(input_ids=tokens[:, :end], use_cache=False).logits  # (n, end, vocabulary)
    return logits[labels[:, 1 : end + 1] != texts.IGNORED].float()


def through_layers(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    """What comes out of the last layer where `text_logits` would ask the head: as large as the vocabulary is not."""
    tokens, labels = pair
    return model.base_model(input_ids=tokens[:, : used(labels)], use_cache=False).last_hidden_state


def scored_tokens(labels: Tensor) -> Tensor:
    """The tokens that are to be predicted, text by text: all labels but those marked and those of a first token."""
    return labels[:, 1:][labels[:, 1:] != texts.IGNORED]


@contextmanager
def recomputed(model: nn.Module) -> Iterator[None]:
    """Inside, decoder layers keep their inputs only, and are computed again in the backward pass, whenever that is."""
    layers = list(decoder_layers(model).values())
    try:
        for layer in layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=layer.training)
        yield
    finally:
        for layer in layers:
            del layer.forward  # what stood before it is the class's own


def text_loss(
    model: nn.Module, pair: tuple[Tensor, Tensor], at_once: int, gradient_checkpointing: bool = False
) -> Tensor:
    """Cross-entropy in nats per scored token.

    In training, of a larger batch `at_once` texts are computed at a time, and again in the backward pass; with
    `gradient_checkpointing` so is every decoder layer by itself.
    """

    def summed(tokens: Tensor, labels: Tensor) -> Tensor:
        with recomputed(model) if gradient_checkpointing else nullcontext():
            logits = text_logits(model, tokens, labels)
        return F.cross_entropy(logits, scored_tokens(labels), reduction="sum")

    if model.training and len(pair[0]) > at_once:
        total = torch.stack([checkpoint(summed, *some, use_reentrant=False) for some in parts(pair, at_once)]).sum()
    else:
        total = summed(*pair)
    return total / len(scored_tokens(pair[1]))


def text_scores(model: nn.Module, pair: tuple[Tensor, Tensor], at_once: int) -> dict[str, float]:
    """Loss in nats per scored token, perplexity, and accuracy: the share of scored tokens that are the likeliest.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    losses, right = [], []
    for tokens, labels in parts(pair, at_once):
        logits, wanted = text_logits(model, tokens, labels), scored_tokens(labels)
        losses.append(F.cross_entropy(logits, wanted, reduction="none").double())
        right.append((logits.argmax(-1) == wanted).double())
    loss = torch.cat(losses).mean().item()
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss on held-out texts is {loss}: dtype float32 may help")
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "accuracy": torch.cat(right).mean().item()}
