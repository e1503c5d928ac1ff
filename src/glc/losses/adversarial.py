"""The adversarial loss, which owns its discriminator (paper section 4.1)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Exclude a module's parameters from the graph built inside; its inputs stay differentiable."""
    wanted = [p.requires_grad for p in module.parameters()]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in zip(module.parameters(), wanted, strict=True):
            parameter.requires_grad_(flag)


def adaptive_weight(
    x_hat: Tensor, gradients: Tensor, adversarial_gradients: Tensor, last_layer: Tensor, limit: float = 1e4
) -> Tensor:
    """Return the ratio of two losses' gradient norms at the decoder's last layer (Esser et al. 2021, eq. 7).

    Args:
        x_hat: the decoder's output, part of the graph.
        gradients: of the reconstruction loss with respect to x_hat.
        adversarial_gradients: of the adversarial loss with respect to x_hat.
        last_layer: weight of the decoder's last convolution.
        limit: largest weight.

    Returns:
        A scalar in `[0, limit]` without gradient.
    """
    norms = [
        torch.autograd.grad(x_hat, last_layer, g, retain_graph=True)[0].float().norm()
        for g in (gradients, adversarial_gradients)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0, limit).detach()


class AdversarialLoss(nn.Module):
    """Hinge loss between a discriminator and a generator, balanced by gradient norms.

    Before the step `start` the discriminator is not trained and the generator has no adversarial term.

    Args:
        discriminator: maps `[B, 3, H, W]` in [-1, 1] to logits.
        weight: of the adversarial term after balancing (0.8 in the paper).
        start: first step with an adversarial term.
        limit: largest adaptive weight.
    """

    def __init__(
        self, discriminator: nn.Module, weight: float = 0.8, start: int = 0, limit: float = 1e4
    ) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.weight = weight
        self.start = start
        self.limit = limit

    def active(self, step: int) -> bool:
        """Return whether the adversarial term is used at a step."""
        return self.weight > 0 and step >= self.start

    def discriminator_loss(self, x: Tensor, x_hat: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the hinge loss that trains the discriminator, and `logits_real`, `logits_fake` to log.

        Before `start` the loss is zero, but connected to every parameter: DDP expects a gradient for each of
        them in every step.
        """
        if not self.active(step):
            with torch.no_grad():
                real, fake = self.discriminator(x).float(), self.discriminator(x_hat).float()
            loss = sum((0.0 * p.sum() for p in self.discriminator.parameters()), x.new_zeros(()))
        else:
            real = self.discriminator(x).float()
            fake = self.discriminator(x_hat.detach()).float()
            loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        return loss, {"logits_real": real.detach().mean(), "logits_fake": fake.detach().mean()}

    def generator_loss(
        self,
        x_hat: Tensor,
        pixels: Tensor,
        distortion: Tensor,
        last_layer: Tensor,
        step: int,
        scale: Tensor | float = 1.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a loss whose gradient is that of `mean(scale * (distortion + w * adversarial))`.

        Distortion and discriminator are differentiated once each, down to the pixels; the decoder then
        gets the sum of both gradients in one backward pass. The value of the returned loss has no meaning.

        Args:
            x_hat: the decoder's output `[B, 3, H, W]`, part of the graph.
            pixels: the same values as a leaf: `x_hat.detach().requires_grad_()`.
            distortion: `[B]`, weighted distortion per image, computed from `pixels`.
            last_layer: weight of the decoder's last convolution.
            step: the training step.
            scale: `[B]`, the lambda of each image.

        Returns:
            The loss, and the terms to log: `adversarial` (minus the mean logit) and `adversarial_weight`.
        """
        (gradients,) = torch.autograd.grad(distortion.mean(), pixels)
        terms: dict[str, Tensor] = {}
        if self.active(step):
            with frozen(self.discriminator):
                adversarial = -self.discriminator(pixels).float().mean()
            (opposing,) = torch.autograd.grad(adversarial, pixels)
            balance = self.weight * adaptive_weight(x_hat, gradients, opposing, last_layer, self.limit)
            gradients = gradients + balance * opposing
            terms = {"adversarial": adversarial.detach(), "adversarial_weight": balance}
        factor = scale[:, None, None, None] if isinstance(scale, Tensor) else scale
        return (x_hat * gradients * factor).sum(), terms
