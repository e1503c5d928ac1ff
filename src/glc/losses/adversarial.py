"""The adversarial loss, which owns its discriminator (paper section 4.1)."""

from collections.abc import Iterable, Iterator
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


LECAM_DECAY = 0.99
"""Of the running means of the logits."""


def _mean(heads: Iterable[Tensor]) -> Tensor:
    """Return the mean over heads of each head's mean."""
    return torch.stack([head.mean() for head in heads]).mean()


class AdversarialLoss(nn.Module):
    """Hinge loss between a discriminator and a generator, balanced by gradient norms.

    Before the step `start` the discriminator is not trained and the generator has no adversarial term.

    Args:
        discriminator: maps `[B, 3, H, W]` in [-1, 1] to logits, or to a list of logits of several heads,
            which have equal weight.
        weight: of the adversarial term after balancing (0.8 in the paper).
        start: first step with an adversarial term.
        limit: largest adaptive weight.
        augment: changes the images that the discriminator sees in training, `[B, 3, H, W]` to the same.
        lecam: weight of LeCam's regularisation of the discriminator (Tseng et al., 2021, eq. 2): the squared
            distance of real logits from the running mean of reconstructed ones, and vice versa, which keeps a
            discriminator from running away when images are few. 0: none.
    """

    mean_real: Tensor
    """Running mean of the logits of images; only with `lecam`, like `mean_fake` of reconstructions."""
    mean_fake: Tensor

    def __init__(
        self,
        discriminator: nn.Module,
        weight: float = 0.8,
        start: int = 0,
        limit: float = 1e4,
        augment: nn.Module | None = None,
        lecam: float = 0.0,
    ) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.weight = weight
        self.start = start
        self.limit = limit
        self.augment = augment
        self.lecam = lecam
        if lecam:
            self.register_buffer("mean_real", torch.zeros(()))
            self.register_buffer("mean_fake", torch.zeros(()))

    def logits(self, images: Tensor) -> list[Tensor]:
        """Return the logits of each head, float32, for images `[B, 3, H, W]`, augmented in training."""
        if self.augment is not None and self.training:
            images = self.augment(images)
        found = self.discriminator(images)
        return [head.float() for head in ([found] if isinstance(found, Tensor) else found)]

    def active(self, step: int) -> bool:
        """Return whether the adversarial term is used at a step."""
        return self.weight > 0 and step >= self.start

    def discriminator_loss(self, x: Tensor, x_hat: Tensor, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss that trains the discriminator, and terms to log.

        The terms are `logits_real`, `logits_fake` and, with regularisation, `lecam`.

        Before `start` the loss is zero, but connected to every parameter: DDP expects a gradient for each of
        them in every step.
        """
        if not self.active(step):
            with torch.no_grad():
                real, fake = self.logits(x), self.logits(x_hat)
            loss = sum((0.0 * p.sum() for p in self.discriminator.parameters()), x.new_zeros(()))
        else:
            real, fake = self.logits(x), self.logits(x_hat.detach())
            loss = 0.5 * (_mean(F.relu(1 - head) for head in real) + _mean(F.relu(1 + head) for head in fake))
        means = {"logits_real": _mean(real).detach(), "logits_fake": _mean(fake).detach()}
        if self.lecam and self.active(step):
            means["lecam"] = self._lecam(real, fake)
            loss = loss + self.lecam * means["lecam"]
            with torch.no_grad():
                self.mean_real.lerp_(means["logits_real"], 1 - LECAM_DECAY)
                self.mean_fake.lerp_(means["logits_fake"], 1 - LECAM_DECAY)
        return loss, means

    def _lecam(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        """Return LeCam's regularisation, with the running means of the steps before."""
        mean_real, mean_fake = self.mean_real.clone(), self.mean_fake.clone()
        return _mean((head - mean_fake).square() for head in real) + _mean(
            (head - mean_real).square() for head in fake
        )

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
                adversarial = -_mean(self.logits(pixels))
            (opposing,) = torch.autograd.grad(adversarial, pixels)
            balance = self.weight * adaptive_weight(x_hat, gradients, opposing, last_layer, self.limit)
            gradients = gradients + balance * opposing
            terms = {"adversarial": adversarial.detach(), "adversarial_weight": balance}
        factor = scale[:, None, None, None] if isinstance(scale, Tensor) else scale
        return (x_hat * gradients * factor).sum(), terms
