"""Muon (Jordan et al., 2024), as `torch.optim.Muon` with `match_rms_adamw`, but all matrices of one shape at once.

There each matrix takes some 27 kernels of a few microseconds; here each shape does, of which the blocks have five.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS = 0.2  # of AdamW's steps, which a step's is made equal to


class Muon(torch.optim.Optimizer):
    """w <- (1 - lr weight_decay) w - 0.2 lr sqrt(max(rows, columns)) orthogonal(g + momentum), of matrices alone."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step of every matrix; each must have a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = {}
            for param in group["params"]:
                shapes.setdefault(param.shape, []).append(param)
            for shape, matrices in shapes.items():
                steps = orthogonal(torch.stack(self._directions(matrices)))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, steps.float().unbind(), alpha=-RMS * group["lr"] * max(shape) ** 0.5)

    def _directions(self, matrices: list[Tensor]) -> list[Tensor]:
        """Gradients with Nesterov's momentum."""
        gradients, buffers = [], []
        for matrix in matrices:
            assert matrix.grad is not None
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            gradients.append(matrix.grad)
            buffers.append(state["momentum_buffer"])
        torch._foreach_lerp_(buffers, gradients, 1 - MOMENTUM)
        return list(torch._foreach_lerp(gradients, buffers, MOMENTUM))


def orthogonal(matrices: Tensor) -> Tensor:
    """Nearly the nearest matrices with orthogonal rows or columns: singular values of 0.7 to 1.2, by Newton-Schulz.

    Args:
        matrices: float32 [n, rows, columns].
    Returns:
        bfloat16 [n, rows, columns].
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
