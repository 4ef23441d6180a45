"""`MuonAdam`: orthogonalised momentum for the backbone's matrices, Adam for everything else; and `AdamW` alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.adamw import adamw

MUON_MOMENTUM = 0.95
ADAM_BETAS = (0.9, 0.95)
ADAM_EPS = 1e-8
# Quintic whose fifth iterate maps singular values of (0, 1] near 1; from Jordan et al. 2024.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
NORM_EPS = 1e-7  # a gradient of zeros stays one
WIDE = 2  # columns per row from which small products instead of wide ones save time


def orthogonalise(stack: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """Return each matrix with its singular values moved near 1.

    On a processor one matrix after another, which then stays in its cache; elsewhere all of them together.
    Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    if stack.device.type != "cpu":
        return _together(stack)
    return torch.stack([_alone(matrix.T).T if len(matrix) > matrix.shape[1] else _alone(matrix) for matrix in stack])


def _alone(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """One matrix with no more rows than columns.

    A step multiplies x by p = a + b g + c g g, where g = x x^T. All of them commute, so that a wide matrix is needed
    only once: g becomes p p g, and the product of all p is applied at the end.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix / (matrix.norm() + NORM_EPS)
    gram = x @ x.T
    wide = matrix.shape[1] >= WIDE * matrix.shape[0]
    product: Tensor | None = None
    for step in range(NEWTON_SCHULZ_STEPS):
        p = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        p.diagonal().add_(a)
        last = step == NEWTON_SCHULZ_STEPS - 1
        if not wide:
            x = p @ x
            gram = gram if last else x @ x.T
        else:
            product = p if product is None else p @ product
            gram = gram if last else p @ (p @ gram)
    out: Tensor = x if product is None else product @ x
    return out


def _together(stack: Float[Tensor, "n rows columns"]) -> Float[Tensor, "n rows columns"]:
    """All matrices of a shape at once."""
    a, b, c = NEWTON_SCHULZ
    tall = stack.shape[1] > stack.shape[2]
    x = stack.transpose(1, 2) if tall else stack
    x = x / (x.norm(dim=(1, 2), keepdim=True) + NORM_EPS)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    out: Tensor = x.transpose(1, 2) if tall else x
    return out


@runtime_checkable
class Optimiser(Protocol):
    """What the loop asks of an optimiser."""

    def step(self, scale: float) -> None:
        """Take one step with every learning rate times `scale`, and clear the gradients."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything a later run needs to go on exactly."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        ...


class MuonAdam:
    """Muon for matrices of `backbone.layers`, Adam for embeddings, norms and biases.

    `weight_decay` shrinks the matrices by learning rate times itself at every step (decoupled, as in AdamW).
    """

    def __init__(
        self, network: nn.Module, *, muon_lr: float, adam_lr: float, weight_decay: float = 0.0
    ) -> None:
        self.muon_lr, self.adam_lr, self.weight_decay = muon_lr, adam_lr, weight_decay
        self.matrices: dict[str, nn.Parameter] = {}
        self.others: dict[str, nn.Parameter] = {}
        for name, parameter in network.named_parameters():
            matrix = parameter.ndim == 2 and name.startswith("backbone.layers.")
            (self.matrices if matrix else self.others)[name] = parameter
        self.momentum = {name: torch.zeros_like(p) for name, p in self.matrices.items()}
        self.first = {name: torch.zeros_like(p) for name, p in self.others.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.others.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Take one step with both learning rates times `scale`, and clear the gradients."""
        self.steps += 1
        self._step_muon(self.muon_lr * scale)
        self._step_adam(self.adam_lr * scale)
        for parameter in (*self.matrices.values(), *self.others.values()):
            parameter.grad = None

    def _step_muon(self, lr: float) -> None:
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in self.matrices.items():
            by_shape[parameter.shape].append(name)
        for shape, names in by_shape.items():
            updates = []
            for name in names:
                gradient = self.matrices[name].grad
                assert gradient is not None, name
                self.momentum[name].lerp_(gradient, 1 - MUON_MOMENTUM)
                updates.append(gradient.lerp(self.momentum[name], MUON_MOMENTUM))  # Nesterov
            factor = max(1.0, shape[0] / shape[1]) ** 0.5
            if self.weight_decay:
                torch._foreach_mul_([self.matrices[name] for name in names], 1 - lr * self.weight_decay)
            for name, update in zip(names, orthogonalise(torch.stack(updates)), strict=True):
                self.matrices[name].sub_(update, alpha=lr * factor)

    def _step_adam(self, lr: float) -> None:
        beta1, beta2 = ADAM_BETAS
        for name, parameter in self.others.items():
            if parameter.grad is None:
                continue
            first = self.first[name].lerp_(parameter.grad, 1 - beta1)
            second = self.second[name].lerp_(parameter.grad.square(), 1 - beta2)
            unbiased = second / (1 - beta2**self.steps)
            parameter.sub_(first / (unbiased.sqrt() + ADAM_EPS), alpha=lr / (1 - beta1**self.steps))

    def state(self) -> dict[str, Tensor]:
        """Return everything a later run needs to go on exactly."""
        named = {"momentum": self.momentum, "first": self.first, "second": self.second}
        tensors = {
            f"{kind}/{name}": tensor for kind, group in named.items() for name, tensor in group.items()
        }
        return tensors | {"steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.steps = int(state["steps"])
        for kind, group in (("momentum", self.momentum), ("first", self.first), ("second", self.second)):
            for name, tensor in group.items():
                tensor.copy_(state[f"{kind}/{name}"])


class AdamW:
    """Adam with decoupled weight decay on everything that has two axes. Source: Loshchilov and Hutter 2019, alg. 2."""

    def __init__(self, network: nn.Module, *, lr: float, weight_decay: float = 0.0) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self.parameters = dict(network.named_parameters())
        self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Take one step with the learning rate times `scale`, and clear the gradients."""
        self.steps += 1
        moving = {name: p for name, p in self.parameters.items() if p.grad is not None}
        for decay in (True, False):
            names = [name for name, p in moving.items() if (p.ndim >= 2) == decay]
            if names:
                self._move(names, self.lr * scale, self.weight_decay if decay else 0.0)
        for parameter in moving.values():
            parameter.grad = None

    def _move(self, names: list[str], lr: float, weight_decay: float) -> None:
        """torch's fused kernel: one pass over memory where separate operations take eight."""
        parameters: list[Tensor] = [self.parameters[name] for name in names]
        adamw(
            parameters, [p.grad for p in parameters if p.grad is not None],
            [self.first[name] for name in names], [self.second[name] for name in names], [],
            [torch.tensor(self.steps - 1.0, device=p.device) for p in parameters],   # it counts this step itself
            fused=True, amsgrad=False, beta1=ADAM_BETAS[0], beta2=ADAM_BETAS[1], lr=lr, weight_decay=weight_decay,
            eps=ADAM_EPS, maximize=False,
        )  # fmt: skip

    def state(self) -> dict[str, Tensor]:
        """Return everything a later run needs to go on exactly."""
        named = {"first": self.first, "second": self.second}
        tensors = {
            f"{kind}/{name}": tensor for kind, group in named.items() for name, tensor in group.items()
        }
        return tensors | {"steps": torch.tensor(self.steps)}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.steps = int(state["steps"])
        for kind, group in (("first", self.first), ("second", self.second)):
            for name, tensor in group.items():
                tensor.copy_(state[f"{kind}/{name}"])
