"""The ONNX graphs compute what PyTorch's networks compute."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import glc
from glc.codec.onnx import networks
from glc.codec.onnx.graph import FLOAT, Graph
from glc.codec.onnx.runtime import make_graphs
from glc.codec.onnx.weights import read_arrays
from glc.errors import ArchitectureError
from glc.models.autoencoder import Decoder, Encoder
from tests.codec.fixed_model import fixed_description
from tests.codec.variants import WITH_Y, Variants

onnxruntime = pytest.importorskip("onnxruntime")
SMALL: dict[str, Any] = {"latent_channels": 8, "channels": 32, "multipliers": [1, 2], "num_blocks": 1}
ENDS: dict[str, dict[str, Any]] = {
    "group": {"norm": "group", "window": 4},
    "groups of fewer": {"norm": "group", "channels": 24, "window": None},
    "pixel, stem": {"norm": "pixel", "stem": 4, "window": 3, "level_attention": False},
    "bounded": {"norm": "pixel", "stem": 2, "bounded": True},
    "bare": {"norm": "none", "stem": 2, "out_activation": False, "projection": False, "multipliers": [1]},
}


def run(graph: Graph, **inputs: Tensor | np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(graph.serialize(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in inputs.items()})


def arrays(network: nn.Module, prefix: str) -> dict[str, np.ndarray]:
    return {f"{prefix}.{name}": tensor.numpy() for name, tensor in network.state_dict().items()}


def shaken(network: nn.Module) -> nn.Module:
    """Return a network for evaluation whose normalisations and biases do something."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def assert_close(found: np.ndarray, expected: Tensor) -> None:
    assert found.shape == tuple(expected.shape)
    error = np.square(found - expected.numpy()).mean()
    assert error < 1e-8 * float(expected.max() - expected.min()) ** 2  # 80 dB


@torch.inference_mode()
@pytest.mark.parametrize("kind", ENDS)
@pytest.mark.parametrize("size", [(5, 7), (8, 2), (1, 1)])
def test_encoder_and_decoder_equal_pytorch(kind: str, size: tuple[int, int]) -> None:
    """Maps smaller than a window, windows cut off by the edge, exact windows; batches."""
    description = {**SMALL, **ENDS[kind]}
    of_decoder = {key: value for key, value in description.items() if key != "bounded"}
    encoder, decoder = shaken(Encoder(**description)), shaken(Decoder(**of_decoder))
    x = torch.rand(2, 3, *(side * networks.downsampling(description) for side in size)) * 2 - 1
    (latent,) = run(networks.encoder(description, arrays(encoder, "encoder")), x=x)
    assert_close(latent, encoder(x))
    l_hat = torch.randn(2, 8, *size)
    (x_hat,) = run(networks.decoder(description, arrays(decoder, "decoder")), l_hat=l_hat)
    assert_close(x_hat, decoder(l_hat))


@torch.inference_mode()
@pytest.mark.parametrize("stem", [2, 4])
def test_refinement_blocks_equal_pytorch(stem: int) -> None:
    description = {**SMALL, "norm": "pixel", "stem": stem, "fine_blocks": 2, "fine_channels": 16}
    decoder = shaken(Decoder(**description))
    l_hat = torch.randn(1, 8, 3, 4)
    (x_hat,) = run(networks.decoder(description, arrays(decoder, "decoder")), l_hat=l_hat)
    assert_close(x_hat, decoder(l_hat))


@torch.inference_mode()
@pytest.mark.parametrize("variant", WITH_Y)
def test_transforms_equal_pytorch_at_a_rate_index_for_each_image(variants: Variants, variant: str) -> None:
    graphs, model = make_graphs(read_arrays(variants.weights(variant))), variants.codec(variant).model
    latent, rates = torch.randn(3, 16, 8, 12), torch.tensor([0.0, 1.375, 3.0])
    y = model.coder.analysis(latent, rates)
    found = run(graphs["analysis"], l=latent, rate=rates)
    assert_close(found[0], y)
    assert np.array_equal(found[1], model.coder.hyper(y).indices)
    (l_hat,) = run(graphs["synthesis"], y_hat=y, rate=rates)
    assert_close(l_hat, model.coder.synthesis(y, rates))


@pytest.mark.parametrize("external", [False, True])
def test_graphs_pass_the_checker_of_onnx(variants: Variants, external: bool, tmp_path: Any) -> None:
    onnx = pytest.importorskip("onnx")
    weights = read_arrays(variants.weights("categorical"))
    for graph in make_graphs(weights).values():
        model = onnx.load_from_string(graph.serialize(external))
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        assert set(graph.used) <= set(stored)
        # Names are those of the weights file.
        assert set(graph.used) <= set(weights.tensors)
        for used, array in graph.used.items():
            assert tuple(stored[used].dims) == array.shape
            assert bool(stored[used].raw_data) is not external
        if not external:
            onnx.checker.check_model(model, full_check=True)
            free = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
            assert "batch" in free
            assert len(free - {""}) > 1


def test_half_precision_is_converted() -> None:
    graph = Graph("g", {"a": np.array([[0.5, 1.0]], np.float16)})
    graph.output("y", graph.weight("a"), FLOAT, (1, 2))
    (found,) = run(graph)
    assert found.dtype == np.float32
    assert found.tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("encoder", {"_target_": "mypkg.Encoder"}, "its encoder (mypkg.Encoder) has no ONNX graph"),
        ("decoder", None, "its decoder (None) has no ONNX graph"),
        ("refiner", {"_target_": "x"}, "its refiner has no ONNX graph"),
    ],
)
def test_other_networks_have_no_graph(key: str, value: Any, complaint: str) -> None:
    description = {**fixed_description(), key: value}
    with pytest.raises(ArchitectureError) as caught:
        networks.check(description)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("part", ["analysis", "synthesis", "hyper", "context"])
def test_user_networks_in_the_coder_have_no_graph(part: str) -> None:
    description = fixed_description()
    description["coder"] |= {part: {"_target_": "mypkg.Network"}}
    with pytest.raises(ArchitectureError, match="has no ONNX graph"):
        networks.check(description)


def test_bundled_codec_has_graphs() -> None:
    codec = glc.load(backend="onnx")
    assert codec.backend == "onnx"
    assert codec.stride == 64
