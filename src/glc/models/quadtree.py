"""The order in which the quadtree context model codes y (paper section 8.2), for PyTorch and for NumPy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

STEPS = 4

ORDER = (0, 3, 2, 1)
"""Position in a 2x2 cell (row-major) that channel group 0 codes at each step; group g codes that XOR g."""


@dataclass
class ContextStep:
    """One step of a context model: the distribution of the elements that it codes; maps `[B, N, h, w]`.

    The maps are tensors, or arrays in a codec without PyTorch.
    """

    mask: Any
    """Boolean `[1, N, h, w]`: the elements of this step."""
    quant_step: Any
    """Quantisation steps of y."""
    scales: Any
    """Standard deviations of the symbols before the bound, or the output of the caller's `Scales`."""
    means: Any
    """Means of `y / quant_step`."""
    rho: Any = None
    """Factor of the residuals' quantisation steps `[B, 1, h, w]`, from `gate`; None for 1."""
    symbols: Any = field(init=False)
    """Set by the caller: `round((y / quant_step - means) / rho)`. Elements of other steps are ignored."""
    y_hat: Any = field(init=False)
    """Set by `walk` on the last step: `(symbols * rho + means) * quant_step` of all steps."""


def check_channels(channels: int) -> None:
    """Check the width of y.

    Raises:
        ValueError: channels is not a multiple of 4.
    """
    if channels % 4:
        raise ValueError(f"channels must be a multiple of 4, got {channels}")


def quadtree_masks(xp: Any, channels: int, height: int, width: int, **device: Any) -> Any:
    """Return which elements each step codes: boolean `[STEPS, 1, channels, height, width]`.

    Channels form four groups. At each step every group codes a different position of each 2x2 cell, so that
    each position has coded neighbours in some group. Each element is coded at exactly one step.

    Args:
        xp: `torch` or `numpy`.
        device: `device=` of PyTorch. Computed there: copying a table would synchronise with a GPU.
    """
    check_channels(channels)
    rows = xp.arange(height, **device)[:, None] % 2
    cols = xp.arange(width, **device)[None, :] % 2
    groups = xp.arange(channels, **device) // max(1, channels // 4)
    order = xp.stack([groups ^ first for first in ORDER])
    return (2 * rows + cols == order[:, :, None, None])[:, None]


def walk(
    xp: Any, first: tuple[Any, Any, Any], masks: Any, predict: Callable[[int, Any], tuple[Any, Any]]
) -> Iterator[ContextStep]:
    """Yield the four steps in turn.

    The caller sets `step.symbols` before it requests the next step. After the loop the last step's `y_hat` is
    the complete y_hat.

    Args:
        xp: `torch` or `numpy`.
        first: quantisation steps, and scales and means of step 0, `[B, N, h, w]`.
        masks: from `quadtree_masks`.
        predict: returns scales and means of step k >= 1, for k and for `symbols + means` of earlier steps,
            which is zero elsewhere.
    """
    quant_step, scales, means = first
    y_hat = xp.zeros_like(means)
    for k in range(STEPS):
        if k > 0:
            scales, means = predict(k, y_hat)
        step = ContextStep(masks[k], quant_step, scales, means)
        yield step
        y_hat = xp.where(masks[k], step.symbols + means, y_hat)
    step.y_hat = y_hat * quant_step


def gate(
    steps: Iterator[ContextStep], rho: Any, scales: Callable[[Any], Any] = lambda found: found
) -> Iterator[ContextStep]:
    """Yield the steps of a context model with residuals in units of rho.

    Scales and means of the model stay those of `y / quant_step`, which it was trained for: a residual
    `y / quant_step - means` is quantised with step rho, hence its symbol has the deviation `scales / rho`.

    Args:
        steps: from a context model's `walk`, with scales as it predicts them.
        rho: `[B, 1, h, w]`, at least 1.
        scales: post-processes the symbols' scales.
    """
    for step in steps:
        own = ContextStep(step.mask, step.quant_step, scales(step.scales / rho), step.means, rho)
        yield own
        step.symbols = own.symbols * rho
    own.y_hat = step.y_hat
