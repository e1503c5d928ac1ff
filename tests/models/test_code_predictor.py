import pytest
import torch
from torch import Tensor, nn

from glc.models.code_predictor import CodePredictionRefiner, CodePredictor
from glc.models.quantizer import VectorQuantizer


@pytest.fixture(params=[True, False], ids=["training", "evaluation"])
def predictor(request: pytest.FixtureRequest) -> CodePredictor:
    module = CodePredictor(6, 20, width=16, heads=2, layers=2, grid=4).train(request.param)
    nn.init.normal_(module.position)  # fresh positions are too small to notice
    return module


def test_logits_align_with_their_vectors(predictor: CodePredictor) -> None:
    latent = torch.randn(2, 6, 4, 4)
    logits = predictor(latent)
    assert logits.shape == (2, 4, 4, 20)
    # Nothing mixes channels of neighbours before the first layer: with attention silenced a change stays.
    for layer in predictor.layers:
        nn.init.zeros_(layer.attention.out_proj.weight)
    changed = latent.clone()
    changed[0, :, 1, 2] += 3
    moved = (predictor(changed) - predictor(latent)).abs().amax(-1) > 1e-4
    assert moved.nonzero().tolist() == [[0, 1, 2]]


def test_images_of_a_batch_are_independent(predictor: CodePredictor) -> None:
    latent = torch.randn(3, 6, 4, 4)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(predictor(latent[order]), predictor(latent)[order])
    torch.testing.assert_close(predictor(latent[1:2]), predictor(latent)[1:2])


def test_each_position_attends_to_its_complete_window(predictor: CodePredictor) -> None:
    latent = torch.randn(1, 6, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(predictor(latent)[0, 0, 0].square().sum(), latent)
    assert (gradient.abs().sum(1) > 0).all()


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 8), (7, 6), (3, 9)])
def test_larger_maps_are_predicted_by_windows(predictor: CodePredictor, height: int, width: int) -> None:
    latent = torch.randn(2, 6, height, width)
    logits = predictor(latent)
    for top in range(0, height, 4):
        for left in range(0, width, 4):
            window = slice(top, top + 4), slice(left, left + 4)
            alone = predictor(latent[:, :, *window])
            torch.testing.assert_close(logits[:, *window], alone, atol=1e-5, rtol=1e-4)


def test_smaller_maps_use_the_upper_left_positions(predictor: CodePredictor) -> None:
    latent = torch.randn(2, 6, 2, 3)
    grid = predictor.position.detach().view(4, 4, 16)
    small = CodePredictor(6, 20, width=16, heads=2, layers=2, grid=3)
    state = predictor.state_dict()
    state["position"] = grid[:3, :3].reshape(9, 16)
    small.load_state_dict(state)
    torch.testing.assert_close(predictor(latent), small(latent))
    with torch.no_grad():
        predictor.position.view(4, 4, 16)[2:] += 5
        predictor.position.view(4, 4, 16)[:, 3:] += 5
        torch.testing.assert_close(predictor(latent), small(latent))
        predictor.position.view(4, 4, 16)[1, 2] += 5
        assert not torch.allclose(predictor(latent), small(latent))


def test_values_carry_no_position() -> None:
    # As published, positions enter queries and keys only: with uniform attention they have no effect.
    module = CodePredictor(6, 20, width=16, heads=2, layers=2, grid=4)
    for layer in module.layers:
        with torch.no_grad():
            layer.attention.in_proj_weight[:16] = 0
            layer.attention.in_proj_bias[:16] = 0
    latent = torch.randn(1, 6, 4, 4)
    before = module(latent)
    nn.init.normal_(module.position, std=3)
    torch.testing.assert_close(module(latent), before)


def test_code_predictor_learns() -> None:
    module = CodePredictor(4, 8, width=16, heads=2, layers=1, grid=4)
    codes = 2 * torch.randn(8, 4)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-2)
    accuracy = 0.0
    for _ in range(60):
        indices = torch.randint(8, (8, 4, 4))
        logits = module(codes[indices].permute(0, 3, 1, 2))
        loss = nn.functional.cross_entropy(logits.flatten(0, 2), indices.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accuracy = float((logits.argmax(-1) == indices).float().mean())
    assert accuracy > 0.95


@pytest.fixture
def refiner() -> CodePredictionRefiner:
    quantizer = VectorQuantizer(20, 6)
    nn.init.normal_(quantizer.embedding)
    return CodePredictionRefiner(CodePredictor(6, 20, width=16, heads=2, layers=1, grid=4), quantizer)


def rows(latent: Tensor) -> Tensor:
    return latent.permute(0, 2, 3, 1).reshape(-1, latent.shape[1])


def test_refined_latents_are_the_predicted_codewords(refiner: CodePredictionRefiner) -> None:
    latent = torch.randn(2, 6, 5, 4)
    refined = refiner(latent)
    assert refined.shape == latent.shape
    predicted = refiner.predictor(latent).argmax(-1).flatten()
    assert predicted.unique().numel() > 1
    torch.testing.assert_close(rows(refined), refiner.quantizer.codebook()[predicted])


def test_refiner_passes_the_gradient_of_the_mean_codeword(refiner: CodePredictionRefiner) -> None:
    latent = torch.randn(1, 6, 4, 4, requires_grad=True)
    weights = torch.randn(1, 6, 4, 4)
    wanted = [latent, *refiner.predictor.parameters(), refiner.quantizer.embedding]
    actual = torch.autograd.grad((refiner(latent) * weights).sum(), wanted)
    soft = refiner.predictor(latent).softmax(-1) @ refiner.quantizer.codebook()
    expected = torch.autograd.grad((soft.permute(0, 3, 1, 2) * weights).sum(), wanted)
    torch.testing.assert_close(actual, expected)
    assert all(gradient.abs().sum() > 0 for gradient in actual)


def test_refined_latents_are_codewords_under_autocast(refiner: CodePredictionRefiner) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        refined = refiner(torch.randn(1, 6, 4, 4))
    nearest = torch.cdist(rows(refined.float()), refiner.quantizer.codebook()).min(1).values
    assert nearest.max() < 1e-3
