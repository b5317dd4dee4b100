"""Other starts of A and B: from the matrix itself (PiSSA), and from its inputs (EVA)."""

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, get_eva_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

Widths = Mapping[str, tuple[int, int]]
#: PEFT goes round the batches until every direction moves by less than this (cosine from one pass to the next) …
SIMILARITY = 0.99
#: … which directions of equal weight never do: so many passes over a batch are the most.
MOST_PASSES = 1000


def check_pissa(by_name: Mapping[str, int], widths: Widths) -> None:
    """Raise ValueError for a matrix with fewer singular values than its rank."""
    for name, rank in by_name.items():
        if rank > min(widths[name]):
            raise ValueError(f"{name} has {min(widths[name])} singular values: pissa cannot start at rank {rank}")


@torch.no_grad()
def keep_first(module: LoraLayer) -> None:
    """Note PiSSA's first A and B beside the trained ones; signs such that the largest entry of A's rows is positive.

    What is trained less what is noted is the correction to the whole of W.
    """
    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    signs = torch.sign(a.gather(1, a.abs().argmax(1, keepdim=True)))
    a.mul_(signs)
    b.mul_(signs.T)
    module.register_buffer("first_A", a.detach().clone(), persistent=False)
    module.register_buffer("first_B", b.detach().clone(), persistent=False)


def eva(
    model: nn.Module,
    by_name: Mapping[str, int],
    widths: Widths,
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor] | None,
    positions: Callable[[Any], Tensor] | None,
) -> dict[str, Tensor]:
    """The main directions (rank, inputs) of every matrix's inputs, orthonormal, the first the one of most variance.

    PEFT's incremental principal components, made for the highest rank in every matrix and cut to each one's own.
    `model` is left alone.
    """
    rank = max(by_name.values())
    if not len(batches) or loss is None:
        raise ValueError("eva starts from the inputs of the matrices: give batches, and the loss that takes them")
    for name in by_name:
        if 2 * rank > widths[name][0]:  # PEFT's randomised decomposition works with twice the directions asked for
            raise ValueError(
                f"{name} has {widths[name][0]} inputs: eva can start at rank {widths[name][0] // 2} at most"
            )
    # The same parameters in modules of their own, for PEFT's hooks.
    probe = copy.deepcopy(model, {id(p): p for p in itertools.chain(model.parameters(), model.buffers())}).eval()
    passes = itertools.count(1)

    def forward(model: nn.Module, batch: Any) -> None:
        if next(passes) > MOST_PASSES:
            raise ValueError(f"eva's directions at rank {rank} do not settle: a lower rank or more data may help")
        loss(model, batch)

    def chosen(inputs: tuple[Tensor, ...], where: Tensor | None, name: str) -> Tensor:
        rows = inputs[0].flatten(0, -2) if where is None else inputs[0][where]
        if len(rows) < 2 * rank:
            raise ValueError(f"eva at rank {rank} takes batches of {2 * rank} positions or more, one has {len(rows)}")
        return rows

    found = get_eva_state_dict(
        probe,
        batches,
        LoraConfig(
            r=rank,
            target_modules=list(by_name),
            init_lora_weights="eva",
            eva_config=EvaConfig(rho=1.0, tau=SIMILARITY),
        ),
        forward_fn=forward,
        prepare_model_inputs_fn=lambda batch, config: positions(batch) if positions else None,
        prepare_layer_inputs_fn=chosen,
        show_progress_bar=False,
    )
    return {name: found[name][:own] for name, own in by_name.items()}
