"""Reconstruction losses: L1 and perceptual distances (paper section 4.1)."""

import logging
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from glc.errors import SettingError
from glc.losses.perceptual import LPIPS, Net, RandomAugmentation, WeightsUnavailable

log = logging.getLogger(__name__)


class PerceptualMixture(nn.Module):
    """Several perceptual distances of the same two images, as terms by name.

    `RandomAugmentation` of a mixture augments the images once per step: all networks see the same pair.

    Args:
        distances: name to module. A module maps two batches `[B, 3, H, W]` in [-1, 1], the estimate first, to
            distances `[B]`, a term of its name, or to several terms by name.
        weights: of the terms, see `ReconstructionLoss.usable`.
    """

    def __init__(self, distances: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.distances = nn.ModuleDict(distances)
        self.weights = dict(weights)

    def forward(self, x_hat: Tensor, x: Tensor) -> dict[str, Tensor]:
        """Return the terms, each `[B]`.

        Raises:
            SettingError: two distances return the same term.
        """
        terms: dict[str, Tensor] = {}
        for name, distance in self.distances.items():
            found = distance(x_hat, x)
            for term, value in (found if isinstance(found, Mapping) else {name: found}).items():
                if term in terms:
                    raise SettingError(f"perceptual.terms.{name}: the term {term} exists already; rename it")
                terms[term] = value
        return terms


def load_perceptual(
    net: Net = "vgg",
    weights_dir: str | None = None,
    required: bool = True,
    augment: bool = False,
    terms: Mapping[str, nn.Module | Callable[[], nn.Module] | None] | None = None,
    weights: Mapping[str, float] | None = None,
) -> LPIPS | PerceptualMixture | RandomAugmentation | None:
    """Return the perceptual distance, or None with a warning when its weights are unavailable.

    Args:
        net: backbone of the term `lpips`, `vgg`, `alex` or `squeeze`.
        weights_dir: folder with the backbone's weights; None for torch hub's cache, then download.
        required: raise instead of returning None.
        augment: apply random augmentations during training (`RandomAugmentation`), the same for all terms.
        terms: further distances beside `lpips`, by name: modules, or functions that construct them; None
            omits one. A class whose modules return several terms names them in `terms`. See
            `PerceptualMixture`.
        weights: weights of these terms.

    Raises:
        WeightsUnavailable: required, and weights are unavailable. If not required, each distance whose
            weights are unavailable is omitted with a warning.
        SettingError: a weight without a term, although no distance is omitted by None.
    """
    wanted: dict[str, nn.Module | Callable[[], nn.Module]] = {"lpips": lambda: LPIPS(net, weights_dir)}
    wanted |= {name: make for name, make in (terms or {}).items() if make is not None}
    names = {
        name: tuple(getattr(getattr(make, "func", make), "terms", (name,))) for name, make in wanted.items()
    }
    known = [term for owned in names.values() for term in owned]
    unknown = sorted((weights or {}).keys() - known)
    if unknown and len(wanted) > len(terms or {}):  # no distance is omitted, whose terms are not known
        raise SettingError(f"perceptual.weights.{unknown[0]}: no such term; the terms are {', '.join(known)}")
    kept = {term: weight for term, weight in (weights or {}).items() if term in known}
    distances: dict[str, nn.Module] = {}
    for name, make in wanted.items():
        try:
            distances[name] = make if isinstance(make, nn.Module) else make()
        except WeightsUnavailable as error:
            text = str(error).replace("set weights_dir to", "set perceptual.weights_dir= to")
            if required:
                omit = "" if name == "lpips" else f", or without this one: perceptual.terms.{name}=null"
                raise WeightsUnavailable(
                    f"{text}\nTo train without the term `{name}`: perceptual.required=false{omit}"
                ) from None
            log.warning("training without the term `%s`: %s", name, text)
            kept = {term: weight for term, weight in kept.items() if term not in names[name]}
    if not distances:
        return None
    mixed = distances.keys() != {"lpips"}
    distance = PerceptualMixture(distances, kept) if mixed else distances["lpips"]
    return RandomAugmentation(distance) if augment else distance  # type: ignore[return-value]


class ReconstructionLoss(nn.Module):
    """Per-image mean absolute error and perceptual distance: the terms `l1` and `lpips` or a mixture's.

    Args:
        perceptual: maps two batches `[B, 3, H, W]` in [-1, 1] to distances `[B]`, such as
            `glc.losses.perceptual.LPIPS`, or to terms by name (`PerceptualMixture`); None omits the term
            `lpips`.
    """

    def __init__(self, perceptual: nn.Module | None = None) -> None:
        super().__init__()
        self.perceptual = perceptual

    def forward(self, x: Tensor, x_hat: Tensor) -> dict[str, Tensor]:
        """Compare x and x_hat `[B, 3, H, W]` in [-1, 1]; each term is `[B]`."""
        terms = {"l1": (x - x_hat).abs().mean((1, 2, 3))}
        if self.perceptual is not None:
            found = self.perceptual(x_hat, x)
            terms |= found if isinstance(found, Mapping) else {"lpips": found}
        return terms

    def usable(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the weights of a stage that fit the terms.

        Those of a mixture are added, unless the stage has the term. That of `lpips` is removed if there is
        no such term.
        """
        distance = self.perceptual
        if isinstance(distance, RandomAugmentation):
            distance = distance.distance
        if isinstance(distance, PerceptualMixture):
            weights = {**distance.weights, **weights}
            has_lpips = "lpips" in distance.distances
        else:
            has_lpips = distance is not None
        return {name: w for name, w in weights.items() if name != "lpips" or has_lpips}
