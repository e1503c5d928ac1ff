import copy

import torch
from torch import nn

from glc.layers.frozen import Frozen


def test_parent_calls_do_not_change_or_list_the_frozen_module() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9), nn.BatchNorm1d(2))
    parent = nn.ModuleList([Frozen(inner)]).train().requires_grad_(True)
    assert not inner.training
    assert not inner[1].training
    assert not any(parameter.requires_grad for parameter in inner.parameters())
    assert not parent.state_dict()
    assert not list(parent.parameters())
    assert not list(parent.buffers())


def test_gradients_flow_to_the_input_only() -> None:
    inner = nn.Linear(2, 1)
    x = torch.ones(1, 2, requires_grad=True)
    Frozen(inner)(x).sum().backward()
    torch.testing.assert_close(x.grad, inner.weight)
    assert inner.weight.grad is None


def test_device_moves_apply_and_dtype_changes_do_not() -> None:
    inner = nn.BatchNorm1d(2)
    parent = nn.ModuleList([Frozen(inner)])
    parent.half()
    assert inner.weight.dtype == inner.running_mean.dtype == torch.float32
    parent.to("meta")
    assert inner.weight.is_meta
    assert inner.running_mean.is_meta


def test_deepcopy_copies_the_network() -> None:
    frozen = Frozen(nn.Linear(2, 2))
    other = copy.deepcopy(frozen)
    other.module.weight.zero_()
    assert frozen.module.weight.abs().sum() > 0
