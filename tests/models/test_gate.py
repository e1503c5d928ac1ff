"""The gate: steps and symbols by hand."""

from collections.abc import Iterator

import pytest
import torch

from glc.models.context import QuadtreeContext
from glc.models.gate import QuantizationGate
from glc.models.quadtree import ContextStep, gate


def constant_gate(g: float) -> QuantizationGate:
    made = QuantizationGate(4, 3, width=4)
    with torch.no_grad():
        made.layers[3].bias.fill_(g)
    return made


@pytest.mark.parametrize(("g", "rho"), [(0.0, 1.0), (0.5, 1.5), (-2.0, 1.0)])
def test_rho_is_one_plus_the_head_and_at_least_one(g: float, rho: float) -> None:
    found = constant_gate(g)(torch.randn(2, 4, 2, 3), 1)
    assert found.shape == (2, 1, 8, 12)
    assert bool((found == rho).all())


def test_a_new_gate_learns_though_rho_is_at_its_bound() -> None:
    made = QuantizationGate(4, 3, width=4)
    (made(torch.randn(1, 4, 2, 2), 0).mean() - 1.16).square().backward()
    assert float(made.layers[3].bias.grad) == pytest.approx(2 * (1 - 1.16), abs=1e-6)


def test_rates_between_points_weight_the_two_nearest() -> None:
    made = QuantizationGate(1, 3, width=4)
    seen: list[torch.Tensor] = []
    made.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, 1:, 0, 0]))
    made(torch.zeros(3, 1, 1, 1), torch.tensor([0.0, 1.25, 2.0]))
    assert seen[0].tolist() == [[1, 0, 0], [0, 0.75, 0.25], [0, 0, 1]]


def test_symbols_scales_and_y_hat_by_hand() -> None:
    """y / step = 5, mean 1, rho 1.5: the residual 4 is 2.67 steps, so 3; y_hat = (3 * 1.5 + 1) * step."""

    def steps() -> Iterator[ContextStep]:
        step = ContextStep(torch.tensor(True), torch.tensor(2.0), torch.tensor(3.0), torch.tensor(1.0))
        yield step
        step.y_hat = (step.symbols + step.means) * step.quant_step

    for step in gate(steps(), torch.tensor(1.5), lambda scales: scales * 10):
        assert float(step.scales) == 20
        step.symbols = ((10 / step.quant_step - step.means) / step.rho).round()
        assert float(step.symbols) == 3
    assert float(step.y_hat) == 11


def test_context_model_codes_residuals_in_units_of_rho() -> None:
    torch.manual_seed(0)
    context = QuadtreeContext(4, depth=1).eval()
    y, prior, rho = torch.randn(1, 4, 4, 4) * 4, torch.randn(1, 12, 4, 4), torch.full((1, 1, 4, 4), 1.5)
    with torch.no_grad():
        plain, same, found = (
            context(y, prior),
            context(y, prior, False, rho / 1.5),
            context(y, prior, False, rho),
        )
    for one, other in zip(plain, same, strict=True):
        assert torch.equal(one, other)
    step = prior.chunk(3, 1)[0].clamp_min(0.5)
    residual = y / step - found.means
    assert torch.equal(found.symbols, (residual / 1.5).round())
    torch.testing.assert_close(found.y_hat, (found.symbols * 1.5 + found.means) * step)
    # The first step does not depend on earlier symbols: its scales are those of the plain model over rho.
    first = context.masks(4, 4)[0]
    expected = (prior.chunk(3, 1)[1] / 1.5).clamp_min(context.scale_bound)
    torch.testing.assert_close(found.scales[first], expected[first])
