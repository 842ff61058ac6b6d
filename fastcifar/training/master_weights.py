"""The optimizer's pass over float32 master weights, whose gradients and copies may be bf16: one compiled function.

torch's optimizers need gradients of the weight's type. The mathematics and the state are those of torch.optim's SGD and
Adam, so a checkpoint can be used with either implementation.
"""

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastcifar.recipes import Recipe


class MasterWeights:
    """Updates an optimizer's parameters, and their copies, by which a step differentiates.

    Args:
        optimizer: torch's optimizer for the recipe; missing state is created here.
        recipe: the recipe of the optimizer.
        leaves: one per parameter: the parameter, or its copy in another type.
    """

    def __init__(self, optimizer: Optimizer, recipe: Recipe, leaves: list[Tensor]) -> None:
        self._optimizer, self._recipe = optimizer, recipe
        # Read here: if `update` read the group, torch.compile would compile it again for each learning rate in it.
        group = optimizer.param_groups[0]
        self._masters: list[Tensor] = group["params"]
        self._betas, self._eps = group.get("betas", (0.0, 0.0)), group.get("eps", 0.0)
        has_copy = [leaf is not master for leaf, master in zip(leaves, self._masters, strict=True)]
        self._copied = [position for position, is_copy in enumerate(has_copy) if is_copy]
        self._own = [position for position, is_copy in enumerate(has_copy) if not is_copy]
        self._copies = [leaves[position] for position in self._copied]
        self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """Adopt parameters and state that were set elsewhere: update the copies, create missing state."""
        for position, copy in zip(self._copied, self._copies, strict=True):
            copy.copy_(self._masters[position])
        for master in self._masters:
            state = self._optimizer.state[master]
            if self._recipe.optimizer == "adam":
                state.setdefault("step", torch.zeros((), device=master.device))
                state.setdefault("exp_avg", torch.zeros_like(master))
                state.setdefault("exp_avg_sq", torch.zeros_like(master))
            elif self._recipe.momentum:
                state.setdefault("momentum_buffer", torch.zeros_like(master))

    @torch.no_grad()
    def update(self, gradients: list[Tensor], lr: Tensor) -> None:
        """One step of the optimizer; a function for torch.compile.

        Args:
            gradients: one per parameter, in any floating type.
            lr: `()` float32, on the parameters' device.
        """
        for positions in filter(None, (self._copied, self._own)):  # Inductor only fuses lists of equal length
            masters = [self._masters[position] for position in positions]
            some_gradients = [gradients[position] for position in positions]
            states = [self._optimizer.state[master] for master in masters]
            if self._recipe.optimizer == "adam":
                names = ("exp_avg", "exp_avg_sq", "step")
                averages, squares, num_steps = ([state[name] for state in states] for name in names)
                update_adam(
                    masters,
                    some_gradients,
                    averages,
                    squares,
                    num_steps,
                    lr,
                    betas=self._betas,
                    eps=self._eps,
                    decay=self._recipe.weight_decay,
                )
            else:
                momentum, decay = self._recipe.momentum, self._recipe.weight_decay
                buffers = [state["momentum_buffer"] for state in states] if momentum else []
                update_sgd(masters, some_gradients, buffers, lr, momentum=momentum, decay=decay)
            if positions is self._copied:
                torch._foreach_copy_(self._copies, masters)


def update_sgd(
    masters: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
    lr: Tensor,
    *,
    momentum: float,
    decay: float,
) -> None:
    """`torch.optim.SGD` without dampening or Nesterov; there are no buffers if momentum is 0."""
    updates = torch._foreach_add(torch._foreach_mul(masters, decay), gradients)  # float32 for gradients of any type
    if momentum:
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        updates = tuple(buffers)
    torch._foreach_sub_(masters, torch._foreach_mul(updates, lr))


def update_adam(
    masters: list[Tensor],
    gradients: list[Tensor],
    averages: list[Tensor],
    squares: list[Tensor],
    num_steps: list[Tensor],
    lr: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> None:
    """`torch.optim.Adam`, with the L2 penalty in the gradient; `num_steps` are its counters, `()` float32 each."""
    beta1, beta2 = betas
    updates = torch._foreach_add(torch._foreach_mul(masters, decay), gradients)
    torch._foreach_add_(num_steps, 1)
    torch._foreach_mul_(averages, beta1)
    torch._foreach_add_(averages, updates, alpha=1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, updates, updates, value=1 - beta2)
    num_done = num_steps[0]  # all are equal
    # 1 - beta ** num_done, without float32's loss of digits.
    correction1, correction2 = (-torch.expm1(num_done * math.log(beta)) for beta in betas)
    scale = lr / correction1
    roots = torch._foreach_mul(torch._foreach_sqrt(squares), correction2.rsqrt())
    torch._foreach_add_(roots, eps)
    torch._foreach_sub_(masters, torch._foreach_mul(torch._foreach_div(averages, roots), scale))
