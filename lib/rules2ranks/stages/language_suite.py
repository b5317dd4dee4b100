"""The stage that trains the language suite's model, and how it is scored."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from rules2ranks import models, training
from rules2ranks.runs import stage
from rules2ranks.stages.learning import CHECKPOINT, draw_seed
from rules2ranks.stages.parameters import Rate, Seed, Size, Steps
from rules2ranks.stages.transfer import pairs
from rules2ranks.tasks import language as suite


def language_pairs(size: int, seed: int, split: str) -> tuple[Tensor, Tensor]:
    """A batch of the seven symbolic tasks: tokens and labels, `(size, 20)`."""
    return pairs(suite, size, seed, split)


def answer_logits(model: nn.Module, pair: tuple[Tensor, Tensor]) -> Tensor:
    """The logits that predict answers' tokens, `(tokens, vocabulary)`."""
    tokens, labels = pair
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


@stage(version=1)
def language(
    work: Path,
    steps: Steps = 1600,
    stop: Steps | None = None,
    batch: Size = 64,
    lr: Rate = 4e-3,
    seed: Seed = 0,
) -> dict:
    """Train the small Llama on the seven symbolic tasks: `stop` of the `steps` that the schedule is made for.

    Metrics: loss in nats over answer tokens, accuracy per task and on average, the history. Files: the model in
    transformers' own form, `config.json` and `model.safetensors`.
    """
    model = models.small_llama(seed).to(training.device())
    held_out = language_pairs(700, draw_seed(seed, 1, 0), "validation")
    with training.reproducible(seed):
        history = training.train(
            model,
            lambda step: language_pairs(batch, draw_seed(seed, 0, step), "train"),
            language_loss,
            steps=steps,
            stop=min(stop, steps) if stop else None,
            lr=lr,
            seed=seed,
            evaluate=lambda m: language_scores(m, held_out),
            evaluate_every=max(1, steps // 20),
            checkpoint=work / CHECKPOINT,
            label="language suite",
        )
    model.save_pretrained(work)
    (work / CHECKPOINT).unlink(missing_ok=True)
    final = {name: value for name, value in history.evaluations[-1].items() if name != "step"}
    return {**final, "parameters": models.parameter_count(model), "history": asdict(history)}
