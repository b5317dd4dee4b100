"""The stage that trains the language suite's model, and how it is scored."""

from dataclasses import asdict
from pathlib import Path
from typing import Self

import numpy as np
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from rules2ranks import models, runs, training
from rules2ranks.stages.learning import CHECKPOINT, draw_seed
from rules2ranks.stages.ranges import Rate, Seed, Size, Steps
from rules2ranks.tasks import language as suite


class LanguageTraining(runs.Params):
    """How the small Llama is trained: `stop` of the `steps` that the schedule is made for (None: all).

    Raises:
        ParameterError: a stop beyond the steps.
    """

    steps: Steps = 1600
    stop: Steps | None = None
    batch: Size = 64
    lr: Rate = 4e-3
    seed: Seed = 0

    @model_validator(mode="after")
    def _stops_in_time(self) -> Self:
        if self.stop is not None and self.stop > self.steps:
            raise ValueError(f"stop lies between 1 and the {self.steps} steps, not at {self.stop}")
        return self


def language_pairs(size: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """A batch of the seven symbolic tasks: tokens and labels, `(size, 20)`."""
    return training.on_device(suite.batch(size, seed, split))


def answer_logits(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    """The logits that predict answers' tokens, `(tokens, vocabulary)`."""
    tokens, labels = pair
    # The logits at a position are for the next token: (size, 19, vocabulary) beside labels (size, 19).
    return model(input_ids=tokens).logits[:, :-1][labels[:, 1:] != suite.IGNORED]


def language_loss(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy in nats over the answers' tokens."""
    tokens, labels = pair
    logits = model(input_ids=tokens).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=suite.IGNORED)


def language_scores(model: nn.Module, pair: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Loss, accuracy on average over tasks, and accuracy per task. An answer is right when all its tokens are."""
    tokens, labels = pair
    logits = model(input_ids=tokens).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=suite.IGNORED).item()
    by_task = suite.score(logits.argmax(-1).cpu().numpy(), labels.cpu().numpy(), tokens.cpu().numpy())
    return {"loss": loss, "accuracy": float(np.mean(list(by_task.values()))), **by_task}


def step_bytes(batch: int) -> float:
    """What one training step takes at least on a batch of so many pairs."""
    of = models.small_llama_config()
    sizes = (of.num_hidden_layers, of.hidden_size, of.num_attention_heads, of.vocab_size)
    return models.step_bytes(batch, suite.LENGTH, *sizes)


@runs.stage(version=1)
def language(work: Path, given: LanguageTraining) -> dict:
    """Train the small Llama on the seven symbolic tasks.

    Metrics: loss in nats over answer tokens, accuracy per task and on average, the history. Files: the model in
    transformers' own form, `config.json` and `model.safetensors`.
    """
    training.check_memory(step_bytes(given.batch), f"training with batch={given.batch}")
    model = models.small_llama(given.seed).to(training.device())
    held_out = language_pairs(700, draw_seed(given.seed, 1, 0), "validation")
    watch = training.Watch(evaluate=lambda m: language_scores(m, held_out), every=max(1, given.steps // 20))
    with training.reproducible(given.seed):
        history = training.train(
            model,
            lambda step: language_pairs(given.batch, draw_seed(given.seed, 0, step), "train"),
            language_loss,
            training.Schedule(given.steps, given.lr, stop=given.stop),
            seed=given.seed,
            watch=watch,
            checkpoint=work / CHECKPOINT,
            label="language suite",
        )
    model.save_pretrained(work)
    (work / CHECKPOINT).unlink(missing_ok=True)
    final = {name: value for name, value in history.evaluations[-1].items() if name != "step"}
    return {**final, "parameters": models.parameter_count(model), "history": asdict(history)}
