"""AdamW over all parameters at once: laid one behind the other, they take one pass to measure and one to step."""

from collections import defaultdict

import torch
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq")


class AdamW:
    """torch's AdamW over vectors of which the parameters are views, one vector for each type and device.

    For thirty small parameters the calls of torch's own loop over them take longer than the arithmetic. A parameter
    that got no gradient has a gradient of zero here.

    Args:
        trained: what is to be trained, by name. Until `release` it shares its memory.
        lr: the learning rate.
        weight_decay: of all of it.
    """

    def __init__(self, trained: dict[str, nn.Parameter], lr: float, weight_decay: float):
        kinds: dict[tuple[torch.device, torch.dtype], dict[str, nn.Parameter]] = defaultdict(dict)
        for name, p in trained.items():
            kinds[p.device, p.dtype][name] = p
        self._vectors = [_Vector(members) for members in kinds.values()]
        fused = all(device.type in ("cpu", "cuda") for device, _ in kinds)
        self._torch = torch.optim.AdamW(
            [vector.values for vector in self._vectors], lr=lr, weight_decay=weight_decay, fused=fused
        )

    def clear(self) -> None:
        """Forget the gradients: the next ones are not added to them."""
        for vector in self._vectors:
            for p in vector.members.values():
                p.grad = None

    def gather(self) -> None:
        """Lay the gradients that `backward` left one behind the other; the parameters' own are views of them."""
        for vector in self._vectors:
            vector.gather()

    def clip(self, largest: float) -> None:
        """Scale the gradient down to that norm, as `clip_grad_norm_` does."""
        gradients = [vector.gradients for vector in self._vectors]
        norm = nn.utils.get_total_norm(gradients)
        if norm > largest:  # else all would be multiplied by one
            for gradient in gradients:
                gradient.mul_(largest / (norm.to(gradient.device) + 1e-6))

    def step(self, lr: float) -> None:
        for group in self._torch.param_groups:
            group["lr"] = lr
        self._torch.step()

    def moments(self) -> dict[str, Tensor]:
        """AdamW's two running means, as `exp_avg/name` and `exp_avg_sq/name`; none before the first step."""
        return {
            f"{part}/{name}": view
            for vector in self._vectors
            if (state := self._torch.state[vector.values])
            for part in _MOMENTS
            for name, view in zip(vector.members, vector.views(state[part]), strict=True)
        }

    def resume(self, moments: dict[str, Tensor], steps: int) -> None:
        """Go on from what `moments` gave after so many steps."""
        state = {
            place: {"step": torch.tensor(float(steps))}
            | {part: torch.cat([moments[f"{part}/{name}"].flatten() for name in vector.members]) for part in _MOMENTS}
            for place, vector in enumerate(self._vectors)
        }
        self._torch.load_state_dict({"state": state, "param_groups": self._torch.state_dict()["param_groups"]})

    def release(self) -> None:
        """Give each parameter memory of its own again, without a gradient."""
        self.clear()
        for vector in self._vectors:
            for p in vector.members.values():
                p.data = p.data.clone()


class _Vector:
    def __init__(self, members: dict[str, nn.Parameter]):
        self.members = members
        self.values = nn.Parameter(torch.cat([p.detach().flatten() for p in members.values()]))
        self.values.grad = self.gradients = torch.zeros_like(self.values)
        self._own = self.views(self.gradients)
        for p, view in zip(members.values(), self.views(self.values.detach()), strict=True):
            p.data = view

    def views(self, vector: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.members.values()]
        return [part.view_as(p) for part, p in zip(vector.split(sizes), self.members.values(), strict=True)]

    def gather(self) -> None:
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.members.values()]
        torch.cat([gradient.flatten() for gradient in found], out=self.gradients)
        for p, own in zip(self.members.values(), self._own, strict=True):
            p.grad = own
