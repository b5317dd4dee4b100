"""What can be compressed: a model together with what it learnt from, so that every stage treats all models alike."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer, PreTrainedModel

from rules2ranks import checkpoints, decoders, models, runs, training
from rules2ranks.published import data_folder
from rules2ranks.stages import language_suite, learning
from rules2ranks.stages.language_suite import language
from rules2ranks.stages.learning import WEIGHTS, draw_seed, pretrain
from rules2ranks.stages.parameters import Size
from rules2ranks.tasks import texts
from rules2ranks.tasks.rows import rows_of

#: The trained model of the language suite that the project ships.
SHIPPED = data_folder() / "models" / "language_suite"
SHIPPED_WEIGHTS = SHIPPED / WEIGHTS
#: Held-out examples that a search may look at, and others that only reports look at: the same for every run.
Part = Literal["search", "report"]
SEEDS: dict[Part, int] = {"search": draw_seed(0, 1, 1), "report": draw_seed(0, 1, 2)}
HELD_OUT = 700

Tokens = Annotated[int, Field(ge=2, le=1_000_000, description="tokens of a text")]


class OwnModel(runs.Params):
    """A causal language model of your own, with the texts that it is recovered on.

    `model` is a folder, or a name on the hub: Llama, Mistral, Qwen2, Qwen3, GPT-2 and others with such layers, as
    safetensors. `data` is a file that `tasks.texts` reads. Texts are cut off at `length` tokens; LLM-Pruner's default
    is to train on prompts, too. Of the texts `held_out` each are kept back for search and for reports.
    For importance `calibration_samples` windows of `calibration_length` tokens are drawn from the training texts:
    LLM-Pruner's sizes (it draws them from another corpus).
    `at_once` texts go through the model at a time: less needs less memory, and changes nothing but the order of sums.

    `fingerprint` follows from the content of the model's and the data's files, so that changed files are another
    result; given with other parameters of a result, it has to be that of the files as they are now.

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
    dtype: Literal["float32", "bfloat16"] = "float32"
    at_once: Size = 8
    fingerprint: str = ""

    @model_validator(mode="after")
    def _of_these_files(self) -> Self:
        data = Path(self.data).expanduser()
        if not data.is_file():
            raise ValueError(f"data: there is no file {data.absolute()}; {_ALPACA_CLEANED}")
        folder = checkpoints.find(self.model)
        checkpoints.check(folder)
        now = f"{checkpoints.fingerprint(folder)}-{checkpoints.sha256(data)[:16]}"
        for what, then, current in zip(("model", "data"), self.fingerprint.split("-"), now.split("-"), strict=False):
            if then not in ("", current):
                raise ValueError(f"the files of {what} have changed since: their fingerprint was {then}, is {current}")
        object.__setattr__(self, "fingerprint", now)
        return self


_ALPACA_CLEANED = (
    "alpaca-cleaned, for example, is had by: hf download yahma/alpaca-cleaned alpaca_data_cleaned.json "
    "--repo-type dataset --local-dir data"
)


def _kind(base: Any) -> str:
    """Which of the bases is meant: only its own mistakes are then told."""
    if isinstance(base, OwnModel | pretrain.Params):
        return "own" if isinstance(base, OwnModel) else "rule"
    if isinstance(base, Mapping) and not base.keys() <= language.Params.model_fields.keys():
        return "rule" if base.keys().isdisjoint(("model", "data")) else "own"
    return "shipped" if isinstance(base, str) else "trained"


def in_its_words(kind: type[runs.Params]) -> BeforeValidator:
    """Mistakes in nested parameters are told with the names that are allowed there."""

    def checked(values: Any) -> Any:
        try:
            return kind.check(values) if isinstance(values, Mapping) else values
        except runs.ParameterError as error:
            raise ValueError(str(error).rstrip(".")) from None

    return BeforeValidator(checked)


#: The shipped model; one trained here (with another seed, say); a model that learnt from a rule; or one of your own.
Base = Annotated[
    Annotated[Literal["language"], Tag("shipped")]
    | Annotated[language.Params, in_its_words(language.Params), Tag("trained")]
    | Annotated[pretrain.Params, in_its_words(pretrain.Params), Tag("rule")]
    | Annotated[OwnModel, in_its_words(OwnModel), Tag("own")],
    Discriminator(_kind),
]


@dataclass(frozen=True)
class Subject:
    """A model to compress, with what it learnt from.

    `draw(size, seed)` gives a batch of training data that `loss` takes; `held_out(part)` a batch that training never
    draws. `logits(model, batch)` are those of all scored positions, `(n, classes)`; `scores(model, batch)` has at
    least `loss` and `accuracy`. A batch is a tuple of tensors with the examples along the first axis.

    Importance looks at `samples`, a number of batches and their size, of what `sample` draws (None: as `draw` does);
    `positions(batch)` tells which positions that the model is fed in `loss` have a part in it, `(n, positions)` (None:
    all of them). `at_once` is how many examples are evaluated together (None: all), `beside` the files that belong
    beside the model's checkpoint.
    """

    load: Callable[[], nn.Module]
    draw: Callable[[int, int], Any]
    held_out: Callable[[Part], Any]
    loss: training.Loss
    logits: Callable[[nn.Module, Any], Tensor]
    scores: Callable[[nn.Module, Any], dict[str, float]]
    sample: Callable[[int, int], Any] | None = None
    samples: tuple[int, int] = (10, 64)
    positions: Callable[[Any], Tensor] | None = None
    at_once: int | None = None
    beside: tuple[Path, ...] = ()

    @cached_property
    def model(self) -> nn.Module:
        """The unpruned model, on the device, in evaluation mode; loaded when first asked for."""
        return self.load()

    def calibration(self, seed: int, batches: int | None = None, size: int | None = None) -> list[Any]:
        """Batches of training data for importance: ten of 64, or the subject's own, unless said."""
        draw = self.sample or self.draw
        number, each = self.samples
        return [draw(size or each, draw_seed(seed, 0, step)) for step in range(batches or number)]

    def evaluate(self, part: Part, model: nn.Module | None = None) -> dict[str, float]:
        """Scores of the model (or of another in its place) on held-out examples."""
        batch = self.held_out(part)
        return training.evaluated(self.model if model is None else model, lambda m: self.scores(m, batch))

    def divergence(self, part: Part, model: nn.Module) -> float:
        """KL(unpruned ‖ model) in nats per scored position, the mean over held-out examples."""
        apart = [
            torch.sum(theirs.exp() * (theirs - ours), -1)
            for some in parts(self.held_out(part), self.at_once)
            for theirs, ours in [[self._log_probabilities(m, some) for m in (self.model, model)]]
        ]
        return torch.cat(apart).mean().item()

    def _log_probabilities(self, model: nn.Module, batch: Any) -> Tensor:
        return training.evaluated(model, lambda m: self.logits(m, batch).double().log_softmax(-1))


def parts(batch: tuple[Tensor, ...], at_once: int | None) -> Iterator[tuple[Tensor, ...]]:
    """A batch in parts of at most so many examples."""
    size = at_once or len(batch[0])
    for begin in range(0, len(batch[0]), size):
        yield tuple(tensor[begin : begin + size] for tensor in batch)


def subject(base: Any) -> Subject:
    """The subject that a `Base` names; its model is trained first if need be."""
    if isinstance(base, OwnModel):
        return _of_texts(base)
    if isinstance(base, pretrain.Params):
        return _of_rows(base)
    return _of_language(SHIPPED if base == "language" else language(**base.model_dump()).folder)


def _of_language(folder: Any) -> Subject:
    return Subject(
        load=lambda: models.load_causal_lm(folder).to(training.device()),
        draw=lambda size, seed: language_suite.language_pairs(size, seed, "train"),
        held_out=lambda part: language_suite.language_pairs(HELD_OUT, SEEDS[part], "validation"),
        loss=language_suite.language_loss,
        logits=language_suite.answer_logits,
        scores=language_suite.language_scores,
        positions=lambda pair: F.pad(before_labels(pair[1]), (0, 1)),
    )


def _of_rows(base: Any) -> Subject:
    def draw(size: int, seed: int) -> tuple[Tensor, ...]:
        # Splits need no other handling: `draw_seed` keeps their seeds apart.
        window = {"ring": base.ring, "every": base.every, "seed": seed}
        return (learning.floats(rows_of(base.source, size, base.width, base.rows, **window)),)

    def logits(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        ones = model(batch[0][..., :-1, :]).reshape(-1)
        return torch.stack([torch.zeros_like(ones), ones], -1)

    return Subject(
        load=lambda: learning.pretrained(base),
        draw=draw,
        held_out=lambda part: draw(128, SEEDS[part]),
        loss=lambda model, batch: learning.row_loss(model, *batch),
        logits=logits,
        scores=lambda model, batch: learning.row_scores(model, *batch, learning.edges(base)),
    )


# --- models of one's own ----------------------------------------------------------------------------------------


def tokenizer_of(model: str | Path) -> Any:
    """The tokenizer that lies beside a model.

    Raises:
        ValueError: there is none, or it cannot be loaded.
    """
    folder = checkpoints.find(model)
    if not checkpoints.tokenizer_files(folder):
        raise ValueError(f"{folder} holds no tokenizer: expected tokenizer.json, or what transformers makes one of")
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@functools.lru_cache(maxsize=1)
def encoded(base: OwnModel) -> dict[texts.Part, tuple[np.ndarray, np.ndarray]]:
    """Tokens and labels of the three parts of the texts, as `texts.encode` gives them; those of the last base stay."""
    tokenizer = tokenizer_of(base.model)
    found = texts.split(texts.read(base.data), base.held_out)
    return {part: texts.encode(some, tokenizer, base.length, base.train_on_prompt) for part, some in found.items()}


def _of_texts(base: OwnModel) -> Subject:
    def batch(part: texts.Part, rows: Any = slice(None)) -> tuple[Tensor, ...]:
        return _on_device(array[rows] for array in encoded(base)[part])

    def draw(size: int, seed: int) -> tuple[Tensor, ...]:
        # At most as many as there are, each once.
        rng = np.random.Generator(np.random.Philox(seed))
        return batch("train", rng.permutation(len(encoded(base)["train"][0]))[:size])

    return Subject(
        load=lambda: _own(base),
        draw=draw,
        held_out=batch,
        loss=functools.partial(text_loss, at_once=base.at_once),
        logits=lambda model, pair: text_logits(model, *pair),
        scores=functools.partial(text_scores, at_once=base.at_once),
        sample=lambda size, seed: _on_device(
            texts.windows(*encoded(base)["train"], size, base.calibration_length, seed)
        ),
        samples=(base.calibration_samples, 1),
        positions=lambda pair: before_labels(pair[1])[:, : _used(pair[1])],
        at_once=base.at_once,
        beside=tuple(checkpoints.tokenizer_files(checkpoints.find(base.model))),
    )


def _own(base: OwnModel) -> PreTrainedModel:
    # What is wrong with the texts is told before a large model is loaded, what cannot be pruned before it is scored.
    highest = max(int(tokens.max()) for tokens, _ in encoded(base).values())
    model = models.load_causal_lm(base.model, base.dtype)
    decoders.groups(model)
    if highest >= (known := model.get_input_embeddings().num_embeddings):
        raise ValueError(f"the tokenizer beside {base.model} says token {highest}, the model knows 0 to {known - 1}")
    return model.to(training.device())


def _on_device(arrays: Any) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array).to(training.device()) for array in arrays)


def before_labels(labels: Tensor) -> Tensor:
    """Whether a label is to the right of a position, for all positions but the last: `(n, length - 1)`, boolean."""
    return (labels[:, 1:] != texts.IGNORED).flip(1).cumsum(1).flip(1) > 0


def _used(labels: Tensor) -> int:
    """How many positions a causal model has to be fed: what lies to the right has no part in what is scored."""
    return int(before_labels(labels).any(0).sum())


def text_logits(model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
    """The logits that predict the scored tokens, `(scored, vocabulary)` float32, in the order of `scored_tokens`."""
    used = _used(labels)
    fed = tokens[:, :used]
    return model(input_ids=fed, use_cache=False).logits[labels[:, 1 : used + 1] != texts.IGNORED].float()


def scored_tokens(labels: Tensor) -> Tensor:
    """The tokens that are to be predicted, text by text: all labels but those marked and those of a first token."""
    return labels[:, 1:][labels[:, 1:] != texts.IGNORED]


def text_loss(model: nn.Module, pair: tuple[Tensor, Tensor], at_once: int) -> Tensor:
    """Cross-entropy in nats per scored token.

    In training, of a larger batch `at_once` texts are computed at a time, and again in the backward pass.
    """

    def summed(tokens: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(text_logits(model, tokens, labels), scored_tokens(labels), reduction="sum")

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
