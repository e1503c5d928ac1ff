from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from glc.losses.adversarial import AdversarialLoss, adaptive_weight, frozen
from glc.models.discriminator import PatchDiscriminator


class MeanLogit(nn.Module):
    """One logit per image: its mean, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.unused_before = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.mean((1, 2, 3)) + 0 * self.unused_before.sum()


def flat(*values: float) -> Tensor:
    """Images of one grey each."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


class Game:
    """A decoder, its input, images, and a discriminator that does not mix them."""

    def __init__(self) -> None:
        self.decoder = nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1)
        ).double()
        self.latent = torch.randn(3, 4, 16, 16, dtype=torch.double)
        self.x = torch.randn(3, 3, 16, 16, dtype=torch.double)
        self.discriminator = PatchDiscriminator(4, 1, "group").double()
        for module in self.discriminator.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.2)
        self.x_hat = self.decoder(self.latent)
        self.pixels = self.x_hat.detach().requires_grad_()

    @property
    def last(self) -> nn.Parameter:
        weight = self.decoder[-1].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def distortion(self, x_hat: Tensor) -> Tensor:
        return (self.x - x_hat).square().mean((1, 2, 3))

    def generator_loss(
        self, adversarial: AdversarialLoss, step: int = 0, scale: Tensor | float = 1.0
    ) -> tuple[Tensor, dict[str, Tensor]]:
        distortion = self.distortion(self.pixels)
        return adversarial.generator_loss(self.x_hat, self.pixels, distortion, self.last, step, scale)

    def adversarial(self, x_hat: Tensor) -> Tensor:
        return -self.discriminator(x_hat).mean((1, 2, 3))

    def balance(self) -> Tensor:
        """Ratio of gradient norms, straight from its definition."""
        x_hat = self.decoder(self.latent)
        distortion, adversarial = (
            torch.autograd.grad(loss.mean(), self.last, retain_graph=True)[0].norm()
            for loss in (self.distortion(x_hat), self.adversarial(x_hat))
        )
        return distortion / (adversarial + 1e-4)


@pytest.fixture
def game() -> Game:
    return Game()


def test_hinge_loss_values() -> None:
    loss, terms = AdversarialLoss(MeanLogit()).discriminator_loss(flat(0.5, 2.0), flat(-3.0, 0.25), 0)
    # real: 1 - 0.5 and nothing beyond 1; fake: nothing beyond -1 and 1 + 0.25
    torch.testing.assert_close(loss, torch.tensor(0.5 * (0.5 / 2 + 1.25 / 2)))
    torch.testing.assert_close(terms["logits_real"], torch.tensor(1.25))
    torch.testing.assert_close(terms["logits_fake"], torch.tensor(-1.375))
    assert not terms["logits_real"].requires_grad


def test_discriminator_loss_has_no_gradient_to_the_generator() -> None:
    adversarial = AdversarialLoss(MeanLogit())
    x_hat = flat(0.1, 0.3).clone().requires_grad_()
    loss, _ = adversarial.discriminator_loss(flat(0.5, 0.9), x_hat, 0)
    loss.backward()
    assert x_hat.grad is None
    weight = adversarial.discriminator.get_parameter("weight").grad
    torch.testing.assert_close(weight, torch.tensor(0.5 * (-0.7 + 0.2)))  # -mean(real) + mean(fake)


def test_discriminator_loss_is_zero_with_gradients_before_start() -> None:
    adversarial = AdversarialLoss(PatchDiscriminator(4, 1, "group"), start=10)
    x, x_hat = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    loss, terms = adversarial.discriminator_loss(x, x_hat, 9)
    assert loss == 0
    torch.testing.assert_close(terms["logits_real"], adversarial.discriminator(x).mean())
    loss.backward()
    for parameter in adversarial.discriminator.parameters():
        assert parameter.grad is not None  # distributed training waits for each of them
        assert (parameter.grad == 0).all()
    assert adversarial.discriminator_loss(x, x_hat, 10)[0] > 0


@pytest.mark.parametrize(("weight", "start", "active"), [(0.8, 0, True), (0.8, 6, False), (0.0, 0, False)])
def test_active_depends_on_weight_and_step(weight: float, start: int, active: bool, game: Game) -> None:
    adversarial = AdversarialLoss(game.discriminator, weight, start)
    assert adversarial.active(5) == active
    _, terms = game.generator_loss(adversarial, step=5)
    assert bool(terms) == active


def test_adaptive_weight_is_the_ratio_of_gradient_norms(game: Game) -> None:
    gradients = [
        torch.autograd.grad(loss(game.pixels).mean(), game.pixels)[0]
        for loss in (game.distortion, game.adversarial)
    ]
    weight = adaptive_weight(game.x_hat, *gradients, game.last)
    assert not weight.requires_grad
    torch.testing.assert_close(weight.double(), game.balance(), rtol=1e-5, atol=0)
    assert adaptive_weight(game.x_hat, *gradients, game.last, limit=1e-3) == pytest.approx(1e-3)
    zeros = torch.zeros_like(gradients[0])
    assert adaptive_weight(game.x_hat, gradients[0] * 1e9, zeros, game.last, limit=50) == 50


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("start", [0, 100])
def test_generator_gradient_equals_autograd_of_the_explicit_loss(
    game: Game, per_image: bool, start: int
) -> None:
    scale = torch.tensor([0.5, 4.0, 16.0], dtype=torch.double) if per_image else 3.0
    adversarial = AdversarialLoss(game.discriminator, weight=0.8, start=start)
    loss, terms = game.generator_loss(adversarial, 50, scale)
    actual = torch.autograd.grad(loss, list(game.decoder.parameters()))

    x_hat = game.decoder(game.latent)
    objective = game.distortion(x_hat)
    if start == 0:
        balance = 0.8 * game.balance()
        objective = objective + balance * game.adversarial(x_hat)
        torch.testing.assert_close(terms["adversarial_weight"].double(), balance, rtol=1e-5, atol=0)
        torch.testing.assert_close(terms["adversarial"].double(), game.adversarial(x_hat).mean())
    else:
        assert terms == {}
    expected = torch.autograd.grad((scale * objective).mean(), list(game.decoder.parameters()))
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)


def test_generator_loss_has_no_gradient_to_the_discriminator(game: Game) -> None:
    adversarial = AdversarialLoss(game.discriminator)
    wanted: list[bool] = []  # what its parameters ask for while it judges: no graph is kept for them
    game.discriminator.register_forward_pre_hook(
        lambda module, _: wanted.extend(p.requires_grad for p in module.parameters())
    )
    loss, _ = game.generator_loss(adversarial)
    assert wanted
    assert not any(wanted)
    loss.backward()
    for parameter in game.discriminator.parameters():
        assert parameter.grad is None
        assert parameter.requires_grad
    for part in game.decoder.parameters():
        assert part.grad is not None


def test_one_backward_pass_gives_both_gradients(game: Game) -> None:
    adversarial = AdversarialLoss(game.discriminator)
    loss_d, _ = adversarial.discriminator_loss(game.x, game.x_hat, 0)
    parameters = [*game.decoder.parameters(), *game.discriminator.parameters()]
    own = torch.autograd.grad(loss_d, list(game.discriminator.parameters()), retain_graph=True)
    loss_g, _ = game.generator_loss(adversarial)
    decoders = torch.autograd.grad(loss_g, list(game.decoder.parameters()), retain_graph=True)
    together = torch.autograd.grad(loss_g + loss_d, parameters)
    for got, want in zip(together, [*decoders, *own], strict=True):
        torch.testing.assert_close(got, want)


def test_frozen_restores_requires_grad_after_an_error() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)

    with suppress(RuntimeError), frozen(module):
        assert not module.weight.requires_grad
        raise RuntimeError
    assert module.weight.requires_grad
    assert not module.bias.requires_grad


class Heads(nn.Module):
    """Two heads of different sizes: the mean of each image, and its channels."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x.mean((1, 2, 3)), 2 * x.mean((2, 3))]


def test_heads_have_equal_weight_whatever_their_size() -> None:
    loss, terms = AdversarialLoss(Heads()).discriminator_loss(flat(0.5), flat(-0.25), 0)
    # real: 1 - 0.5 and 1 - 1; fake: 1 - 0.25 and 1 - 0.5
    torch.testing.assert_close(loss, torch.tensor(0.5 * (0.25 + 0.625)))
    torch.testing.assert_close(terms["logits_real"], torch.tensor(0.75))
    torch.testing.assert_close(terms["logits_fake"], torch.tensor(-0.375))


def test_lecam_pulls_logits_to_the_running_means() -> None:
    plain, regular = AdversarialLoss(MeanLogit()), AdversarialLoss(MeanLogit(), lecam=0.5, start=1)
    assert not set(plain.state_dict()) & {"mean_real", "mean_fake"}
    regular.discriminator_loss(flat(5.0), flat(5.0), 0)  # not active: the means do not move
    images = flat(0.5, 2.0), flat(-3.0, 0.25)
    loss, terms = regular.discriminator_loss(*images, 1)
    # Both means are 0 at first: mean of .25 and 4, mean of 9 and .0625.
    torch.testing.assert_close(terms["lecam"], torch.tensor(2.125 + 4.53125))
    torch.testing.assert_close(loss, plain.discriminator_loss(*images, 1)[0] + 0.5 * terms["lecam"])
    torch.testing.assert_close(regular.mean_real, torch.tensor(0.0125))
    torch.testing.assert_close(regular.mean_fake, torch.tensor(-0.01375))
    again = regular.discriminator_loss(*images, 2)[1]["lecam"]
    real = ((0.5 + 0.01375) ** 2 + (2 + 0.01375) ** 2) / 2
    fake = ((-3 - 0.0125) ** 2 + (0.25 - 0.0125) ** 2) / 2
    torch.testing.assert_close(again, torch.tensor(real + fake))
    loss.backward()
    assert regular.discriminator.weight.grad is not None


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_augmentation_changes_what_the_discriminator_sees_in_training() -> None:
    adversarial = AdversarialLoss(MeanLogit(), augment=Doubled())
    _, terms = adversarial.discriminator_loss(flat(0.5), flat(-0.25), 0)
    assert (terms["logits_real"].item(), terms["logits_fake"].item()) == (1.0, -0.5)
    adversarial.eval()
    assert adversarial.logits(flat(0.5))[0].item() == 0.5


def test_generator_gradient_passes_through_the_augmentation(game: Game) -> None:
    plain = AdversarialLoss(game.discriminator, limit=1.0)
    changed = AdversarialLoss(game.discriminator, limit=1.0, augment=Doubled())
    with torch.no_grad():
        expected = game.discriminator(2 * game.pixels).mean()
    assert game.generator_loss(changed)[1]["adversarial"] == pytest.approx(-expected.item(), rel=1e-5)
    gradients = [
        torch.autograd.grad(game.generator_loss(loss)[0], game.last, retain_graph=True)[0]
        for loss in (plain, changed)
    ]
    assert not torch.allclose(*gradients)
