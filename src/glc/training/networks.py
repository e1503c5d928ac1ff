"""The networks of a stage, by name."""

from collections.abc import Iterator

from torch import nn

DISCRIMINATOR = "adversarial.discriminator"
NETWORKS = {
    # network of the codec stages: the same network in stage I. The refiner shares C, so C is loaded after it.
    "model.encoder": "autoencoder.encoder",
    "model.decoder": "autoencoder.decoder",
    "model.coder": None,
    "model.refiner": None,
    "quantizer": "autoencoder.quantizer",
    "code_loss.predictor": None,
    "vq_encoder": None,
    DISCRIMINATOR: DISCRIMINATOR,
}
"""Networks with different names in different stages or kinds of file; all others are matched by name."""


def own_networks(stage: nn.Module) -> list[str]:
    """Return the outermost submodules that are not in `NETWORKS` and contain none that is."""
    known = {name for pair in NETWORKS.items() for name in pair if name is not None}
    there = {name for name, _ in stage.named_modules() if name in known}

    def walk(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            path = prefix + name
            if any(found.startswith(f"{path}.") for found in there):
                yield from walk(child, f"{path}.")
            elif path not in known:
                yield path

    return list(walk(stage, ""))


def trained_networks(stage: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Return the trained parameters of each network of a stage, by the last part of its name.

    The same parameter is listed once, under the first network that has it (the refiner shares C).
    """
    known = (name for pair in NETWORKS.items() for name in pair if name is not None)
    found: dict[str, list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for path in (*known, *own_networks(stage)):
        try:
            network = stage.get_submodule(path)
        except AttributeError:
            continue
        own = [p for p in network.parameters() if p.requires_grad and p not in seen]
        if own:
            seen.update(own)
            name = path.rpartition(".")[2]
            found.setdefault(path if name in found else name, []).extend(own)
    return found
