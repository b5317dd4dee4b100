"""What can be compressed: a model together with what it learnt from, so that every stage treats all models alike."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Discriminator, Tag
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from rules2ranks import checkpoints, decoders, models, published, training
from rules2ranks.configuration import Shapes
from rules2ranks.stages import language_suite, learning, own_texts, real_models
from rules2ranks.stages.language_suite import LanguageTraining, language
from rules2ranks.stages.learning import WEIGHTS, Pretraining, draw_seed
from rules2ranks.stages.own_texts import OwnModel
from rules2ranks.tasks import texts

#: The trained model of the language suite that the project ships.
SHIPPED = published.data_folder() / "models" / "language_suite"
SHIPPED_WEIGHTS = SHIPPED / WEIGHTS
#: Held-out examples that a search may look at, and others that only reports look at: the same for every run.
Part = Literal["search", "report"]
SEEDS: dict[Part, int] = {"search": draw_seed(0, 1, 1), "report": draw_seed(0, 1, 2)}
HELD_OUT = 700


def shipped_model() -> Path:
    """The folder of the shipped model. Raises ValueError where a file in it is torn or altered."""
    for file in ("config.json", WEIGHTS):
        published.shipped(f"models/language_suite/{file}")
    return SHIPPED


#: A batch: tensors with the examples along the first axis.
Batch = tuple[Tensor, ...]


def _kind(base: Any) -> str:
    """Which of the bases is meant: only its own mistakes are then told."""
    if isinstance(base, OwnModel | Pretraining):
        return "(own)" if isinstance(base, OwnModel) else "(rule)"
    if isinstance(base, Mapping) and not base.keys() <= LanguageTraining.model_fields.keys():
        return "(rule)" if base.keys().isdisjoint(("model", "data")) else "(own)"
    return "(shipped)" if isinstance(base, str) else "(trained)"


#: The shipped model, or Gemma from its packages (`real_models.gemma_of_english`); one trained here (with another seed,
#: say); a model that learnt from a rule; or one of your own.
Base = Annotated[
    Annotated[Literal["language", "gemma"], Tag("(shipped)")]
    | Annotated[LanguageTraining, BeforeValidator(LanguageTraining.nested), Tag("(trained)")]
    | Annotated[Pretraining, BeforeValidator(Pretraining.nested), Tag("(rule)")]
    | Annotated[OwnModel, BeforeValidator(OwnModel.nested), Tag("(own)")],
    Discriminator(_kind),
]


#: Numbers that are kept rather than computed again: 128 MiB.
FEW = 2**24


class Subject(ABC):
    """A model to compress, with what it learnt from."""

    #: Importance looks at so many batches of so many examples.
    samples = (10, 64)
    #: So many examples are evaluated together (None: all).
    at_once: int | None = None
    #: Files that belong beside the model's checkpoint.
    beside: tuple[Path, ...] = ()
    #: A batch, and what the unpruned model said of it.
    _said: tuple[Batch, Tensor] | tuple[()] = ()

    @abstractmethod
    def load(self) -> nn.Module:
        """The unpruned model, in evaluation mode, on the device."""

    @abstractmethod
    def skeleton(self) -> nn.Module:
        """The unpruned model without its values: parameters on "meta"."""

    @abstractmethod
    def draw(self, size: int, seed: int) -> Batch:
        """A batch of training data that `loss` takes."""

    @abstractmethod
    def held_out(self, part: Part) -> Batch:
        """A batch that training never draws."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss, in nats."""

    @abstractmethod
    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits of all scored positions, `(n, classes)`."""

    @abstractmethod
    def scores(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """At least `loss` and `accuracy`."""

    def untrained(self, seed: int) -> nn.Module:
        """The unpruned model with new weights."""
        empty = self.skeleton()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return type(empty)(empty.config)

    def sample(self, size: int, seed: int) -> Batch:
        """What importance looks at; as `draw` does, unless a subject knows better."""
        return self.draw(size, seed)

    def step_bytes(self, batch: int) -> float:
        """What one training step takes at least on so many examples."""
        return 0.0

    def positions(self, batch: Batch) -> Tensor | None:
        """Which positions that the model is fed in `loss` have a part in it, `(n, positions)`; None: all of them."""
        return None

    @cached_property
    def model(self) -> nn.Module:
        """What `load` gives, loaded when first asked for."""
        return self.load()

    @cached_property
    def shapes(self) -> Shapes:
        """The unpruned model's shapes; no weights are read for them."""
        return decoders.shapes(self.skeleton())

    def calibration(self, seed: int, batches: int | None = None, size: int | None = None) -> list[Batch]:
        """Batches of training data for importance: as many and as large as `samples` says, unless given."""
        number, each = self.samples
        return [self.sample(size or each, draw_seed(seed, 0, step)) for step in range(batches or number)]

    def evaluate(self, part: Part, model: nn.Module | None = None) -> dict[str, float]:
        """Scores of the model (or of another in its place) on held-out examples."""
        batch = self.held_out(part)
        return training.evaluated(self.model if model is None else model, lambda m: self.scores(m, batch))

    def divergence(self, batch: Batch, model: nn.Module) -> float:
        """KL(unpruned ‖ model) in nats per scored position, the mean over a batch."""
        apart = []
        for some in own_texts.parts(batch, self.at_once):
            theirs, ours = self._unpruned(some), self._log_probabilities(model, some)
            apart.append(torch.sum(theirs.exp() * (theirs - ours), -1))
        return torch.cat(apart).mean().item()

    def _unpruned(self, batch: Batch) -> Tensor:
        """What the unpruned model says of a batch; kept while it is small, as searches ask for the same again."""
        if self._said and all(one is other for one, other in zip(self._said[0], batch, strict=True)):
            return self._said[1]
        said = self._log_probabilities(self.model, batch)
        self._said = (batch, said) if said.numel() <= FEW else ()
        return said

    def _log_probabilities(self, model: nn.Module, batch: Batch) -> Tensor:
        return training.evaluated(model, lambda m: self.logits(m, batch).double().log_softmax(-1))


@functools.lru_cache(maxsize=1)
def subject(base: Any) -> Subject:
    """The subject that a `Base` names, the last one kept: a process holds one unpruned model, loaded once."""
    if isinstance(base, OwnModel):
        return OwnSubject(base)
    if base == "gemma":
        return OwnSubject(real_models.gemma_of_english())
    return RuleSubject(base) if isinstance(base, Pretraining) else LanguageSubject(base)


class LanguageSubject(Subject):
    """The small Llama on the language suite: the shipped one, or one trained anew."""

    def __init__(self, base: Literal["language"] | LanguageTraining):
        self.base = base

    def load(self) -> nn.Module:
        folder = shipped_model() if self.base == "language" else language(self.base).folder
        return models.load_causal_lm(folder).to(training.device())

    def skeleton(self) -> nn.Module:
        return decoders.skeleton(models.small_llama_config(), LlamaForCausalLM)

    def draw(self, size: int, seed: int) -> Batch:
        return language_suite.language_pairs(size, seed, "train")

    def step_bytes(self, batch: int) -> float:
        return language_suite.step_bytes(batch)

    def held_out(self, part: Part) -> Batch:
        return language_suite.language_pairs(HELD_OUT, SEEDS[part], "validation")

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return language_suite.language_loss(model, batch)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return language_suite.answer_logits(model, batch)

    def scores(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        return language_suite.language_scores(model, batch)

    def positions(self, batch: Batch) -> Tensor:
        return F.pad(own_texts.before_labels(batch[1]), (0, 1))


class RuleSubject(Subject):
    """A GPT-2 that learnt to predict the rows of a rule."""

    def __init__(self, base: Pretraining):
        self.base = base

    def load(self) -> nn.Module:
        return learning.pretrained(self.base)

    def skeleton(self) -> nn.Module:
        with torch.device("meta"):
            return learning.network(self.base)

    def untrained(self, seed: int) -> nn.Module:
        return learning.untrained(self.base.model_copy(update={"seed": seed}))

    def draw(self, size: int, seed: int) -> Batch:
        # Splits need no other handling: `draw_seed` keeps their seeds apart.
        return (learning.floats(learning.draw(self.base, size, seed)),)

    def step_bytes(self, batch: int) -> float:
        return learning.step_of(self.base, batch)

    def held_out(self, part: Part) -> Batch:
        return self.draw(128, SEEDS[part])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return learning.row_loss(model, *batch, self.base.flip)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        ones = model(batch[0][..., :-1, :]).reshape(-1)
        return torch.stack([torch.zeros_like(ones), ones], -1)  # (cells, 2): of a cell that is 0, and that is 1

    def scores(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        return learning.row_scores(model, *batch, learning.edges(self.base), self.base.flip)


class OwnSubject(Subject):
    """A causal language model of your own, on texts of your own."""

    def __init__(self, base: OwnModel):
        self.base, self.at_once, self.samples = base, base.at_once, (base.calibration_samples, 1)
        self.beside = tuple(checkpoints.tokenizer_files(checkpoints.find(base.model)))

    @cached_property
    def tokenizer(self) -> Any:
        return own_texts.tokenizer_of(self.base.model)

    @cached_property
    def encoded(self) -> dict[texts.Part, tuple]:
        """Tokens and labels of the three parts of the texts, as `texts.encode` gives them."""
        given = self.base
        found = texts.split(texts.read(given.data), given.held_out)
        return {part: texts.encode(x, self.tokenizer, given.length, given.train_on_prompt) for part, x in found.items()}

    def load(self) -> nn.Module:
        self.check()
        return models.load_causal_lm(self.base.model, self.base.dtype).to(training.device())

    def check(self) -> None:
        """Refuse, as a ValueError, texts that the model cannot take, before anything of it is loaded."""
        empty = self.skeleton()
        positions = getattr(empty.config, "max_position_embeddings", None)
        if positions and self.base.length > positions:
            raise ValueError(f"length is {self.base.length} tokens, but the model's positions end at {positions}")
        highest = max(int(tokens.max()) for tokens, _ in self.encoded.values())
        if highest >= (known := empty.get_input_embeddings().num_embeddings):
            where = f"the tokenizer beside {self.base.model}"
            raise ValueError(f"{where} says token {highest}, the model knows 0 to {known - 1}")

    def skeleton(self) -> nn.Module:
        return models.causal_lm_skeleton(self.base.model, self.base.dtype)

    def draw(self, size: int, seed: int) -> Batch:
        # At most as many as there are, each once.
        return training.on_device(texts.some(*self.encoded["train"], size, seed))

    def held_out(self, part: Part) -> Batch:
        return training.on_device(self.encoded[part])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return own_texts.text_loss(model, batch, self.base.at_once, self.base.gradient_checkpointing)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return own_texts.text_logits(model, *batch)

    def scores(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        return own_texts.text_scores(model, batch, self.base.at_once)

    def sample(self, size: int, seed: int) -> Batch:
        length, start = self.base.calibration_length, texts.start_token(self.tokenizer)
        return training.on_device(texts.windows(*self.encoded["train"], size, length, seed, start))

    def positions(self, batch: Batch) -> Tensor:
        return own_texts.before_labels(batch[1])[:, : own_texts.used(batch[1])]
