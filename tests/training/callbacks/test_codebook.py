"""CodebookRestart on a stage of one codebook, without a trainer."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from glc.models.quantizer import FiniteScalarQuantizer, VectorQuantizer
from glc.training.callbacks.codebook import CodebookRestart
from glc.training.callbacks.ema import EMA
from glc.training.stages.base import Observation, Optimization, Stage


class OneCodebook(Stage):
    def __init__(self, quantizer: VectorQuantizer) -> None:
        super().__init__(Optimization(torch.optim.SGD, float))
        self.quantizer = quantizer

    def all_gather(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        return data


class Driver:
    """Calls the callback as a trainer with one device does."""

    def __init__(self, quantizer: VectorQuantizer, callback: CodebookRestart) -> None:
        self.stage = OneCodebook(quantizer)
        self.callback = callback
        self.trainer = SimpleNamespace(
            global_step=0,
            world_size=1,
            is_global_zero=True,
            global_rank=0,
            strategy=SimpleNamespace(reduce=lambda tensor, reduce_op: tensor),
            callbacks=[],
        )

    def step(self, vectors: Tensor, accumulated: bool = False) -> None:
        """Run a batch with vectors `[N, D]`; unless `accumulated`, it is the last of its step."""
        maps = vectors.T.reshape(1, vectors.shape[1], -1, 1)
        quantizer = self.stage.quantizer
        self.stage.observations["c"] = Observation(quantizer, maps, quantizer.encode(maps))
        self.trainer.global_step += not accumulated
        self.callback.on_train_batch_end(self.trainer, self.stage, None, None, 0)  # type: ignore[arg-type]


def clusters(count: int = 4, each: int = 20) -> tuple[Tensor, Tensor]:
    centres = torch.eye(count) * 10
    return centres, (centres[:, None] + 0.01 * torch.randn(count, each, count)).reshape(-1, count)


def distances(vectors: Tensor, codes: Tensor) -> Tensor:
    return torch.cdist(vectors, codes).min(1).values


def among(codes: Tensor, vectors: Tensor) -> bool:
    return bool((codes[:, None] == vectors).all(2).any(1).all())


def test_new_codebook_is_initialised_on_the_data() -> None:
    centres, vectors = clusters()
    quantizer = VectorQuantizer(8, 4)
    driver = Driver(quantizer, CodebookRestart(initialize_after=1))
    driver.step(vectors[:40])
    assert not quantizer.initialized
    assert distances(centres, quantizer.embedding).min() > 9
    driver.step(vectors[40:])  # the vectors of both steps count
    assert quantizer.initialized
    assert distances(centres, quantizer.embedding).max() < 0.1
    placed = quantizer.embedding.clone()
    driver.step(vectors + 5)
    assert torch.equal(quantizer.embedding, placed)


def test_projected_codebook_is_scaled_to_the_data() -> None:
    vectors = torch.randn(4096, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 7
    quantizer = VectorQuantizer(4096, 4, projected=True)
    fixed = quantizer.embedding.clone()
    Driver(quantizer, CodebookRestart(initialize_after=0)).step(vectors)
    codes = quantizer.codebook()
    torch.testing.assert_close(codes.std(0), vectors.std(0), rtol=0.1, atol=0)
    torch.testing.assert_close(codes.mean(0), vectors.mean(0), rtol=0, atol=0.3)
    assert torch.equal(quantizer.embedding, fixed)


@pytest.mark.parametrize("after", [0, None])
def test_loaded_codebook_is_not_initialised(after: int | None) -> None:
    _, vectors = clusters()
    source = VectorQuantizer(8, 4)
    if after is not None:
        source.initialize(torch.randn(64, 4))
    quantizer = VectorQuantizer(8, 4)
    quantizer.load_state_dict(source.state_dict())
    Driver(quantizer, CodebookRestart(initialize_after=after)).step(vectors)
    assert torch.equal(quantizer.embedding, source.embedding)


def test_frozen_codebook_is_unchanged() -> None:
    _, vectors = clusters()
    quantizer = VectorQuantizer(8, 4).requires_grad_(False)
    before = quantizer.embedding.clone()
    driver = Driver(quantizer, CodebookRestart(initialize_after=0, restart_every=1))
    driver.step(vectors)
    assert torch.equal(quantizer.embedding, before)
    assert not quantizer.initialized


def test_only_dead_codewords_restart() -> None:
    quantizer = VectorQuantizer(6, 4)
    quantizer.initialize(torch.randn(64, 4))
    with torch.no_grad():
        quantizer.embedding[:4] = torch.eye(4) * 10
        quantizer.embedding[4:] = -100.0
    driver = Driver(quantizer, CodebookRestart(initialize_after=None, restart_every=2))
    _, vectors = clusters()
    before = quantizer.embedding.clone()
    driver.step(vectors[:40])  # codes 0 and 1
    assert torch.equal(quantizer.embedding, before)
    driver.step(vectors[40:])  # codes 2 and 3: together none of the four is dead
    after = quantizer.embedding
    assert torch.equal(after[:4], before[:4])
    assert among(after[4:], vectors[40:])
    # Counts were reset: now 0 and 1 are dead, and the restarted codes are used.
    driver.step(vectors[40:])
    driver.step(vectors[40:])
    assert among(quantizer.embedding[:2], vectors[40:])
    assert torch.equal(quantizer.embedding[2:4], before[2:4])


def test_counts_are_restored_from_a_checkpoint() -> None:
    quantizer = VectorQuantizer(4, 4)
    quantizer.initialize(clusters()[1])
    _, vectors = clusters()
    first = Driver(quantizer, CodebookRestart(restart_every=2))
    first.step(vectors)
    second = Driver(quantizer, CodebookRestart(restart_every=2))
    saved = {"callbacks": {first.callback.state_key: first.callback.state_dict()}}
    first.callback.on_save_checkpoint(first.trainer, first.stage, saved)  # type: ignore[arg-type]
    second.callback.load_state_dict(saved["callbacks"][first.callback.state_key])
    second.trainer.global_step = 1
    second.callback.on_train_start(second.trainer, second.stage)  # type: ignore[arg-type]
    before = quantizer.embedding.clone()
    second.step(vectors[:20])  # one code only, but the others were used before the interruption
    assert torch.equal(quantizer.embedding, before)


def test_initialisation_keeps_at_most_max_vectors() -> None:
    quantizer = VectorQuantizer(4, 4)
    driver = Driver(quantizer, CodebookRestart(initialize_after=5, max_vectors=50))
    _, vectors = clusters()
    for _ in range(4):
        driver.step(vectors[:20] - 50)
    driver.step(vectors[20:])
    assert sum(len(kept) for kept in driver.callback._vectors["c"]) <= 60
    driver.step(vectors[:20])
    assert quantizer.initialized
    assert quantizer.embedding.min() > -5  # the oldest vectors were dropped


def test_folding_keeps_the_codewords() -> None:
    quantizer = VectorQuantizer(16, 4, projected=True)
    quantizer.initialize(torch.randn(64, 4))
    codes = quantizer.codebook().detach().clone()
    x = torch.randn(2, 4, 3, 3)
    indices = quantizer.encode(x)
    quantizer.bake()
    assert quantizer.state_dict().keys() == {"embedding", "initialized"}
    assert torch.equal(quantizer.codebook(), codes)
    assert torch.equal(quantizer.encode(x), indices)
    plain = VectorQuantizer(16, 4)
    plain.load_state_dict(quantizer.state_dict())
    assert torch.equal(plain.decode(indices), quantizer.decode(indices))
    quantizer.bake()  # once more is harmless
    assert torch.equal(quantizer.codebook(), codes)


def test_accumulated_batches_are_counted_without_a_restart() -> None:
    centres, _ = clusters()
    quantizer = VectorQuantizer(4, 4)
    with torch.no_grad():
        quantizer.embedding.copy_(centres)
    quantizer.initialized.fill_(True)
    driver = Driver(quantizer, CodebookRestart(restart_every=2))
    driver.step(centres[:1])
    driver.step(centres[1:2], accumulated=True)
    driver.step(centres[2:3], accumulated=True)
    assert torch.equal(quantizer.embedding, centres)
    driver.step(torch.full((1, 4), 3.0))  # the step ends: code 3 was never used, or code 0 is nearest to it
    used = quantizer.encode(torch.full((1, 4, 1, 1), 3.0)).item()
    assert torch.equal(quantizer.embedding[1:3], centres[1:3])
    before = quantizer.embedding.clone()
    driver.step(centres[:1], accumulated=True)  # the step's number still is a multiple of the period
    assert torch.equal(quantizer.embedding, before)
    assert 0 <= used < 4


def test_restarted_codewords_are_distinct() -> None:
    quantizer = VectorQuantizer(16, 4)
    quantizer.initialized.fill_(True)
    vectors = 5 + torch.randn(6, 4)
    Driver(quantizer, CodebookRestart(restart_every=1)).step(vectors)
    moved = quantizer.embedding[(quantizer.embedding.abs() > 1).any(1)]
    assert len(moved) >= 5
    assert len(torch.unique(moved, dim=0)) == len(moved)
    assert among(moved.detach(), vectors)


class Averaged(EMA):
    """An EMA with a given counterpart."""

    def __init__(self, quantizer: VectorQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def counterpart(self, module: Any, part: nn.Module) -> nn.Module:
        return self.quantizer


def test_moved_codewords_are_broadcast_from_rank_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place: pickled tensors would be unpickled on rank 0's GPU."""
    quantizer, average = VectorQuantizer(8, 4), VectorQuantizer(8, 4)
    driver = Driver(quantizer, CodebookRestart(initialize_after=0))
    driver.trainer.world_size = 2
    driver.trainer.callbacks = [Averaged(average)]
    sent: list[Tensor] = []

    def broadcast(tensor: Tensor, src: int) -> None:
        assert src == 0
        sent.append(tensor)
        tensor.add_(1)  # stands for rank 0's values

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    _, vectors = clusters()
    driver.step(vectors)
    assert [tensor.data_ptr() for tensor in sent] == [quantizer.embedding.data_ptr()]
    assert distances(vectors + 1, quantizer.embedding).max() < 0.1
    assert torch.equal(average.embedding, quantizer.embedding)


@pytest.mark.parametrize("kind", ["projected", "finite"])
def test_only_learned_codewords_restart(kind: str) -> None:
    projected = kind == "projected"
    quantizer = (
        VectorQuantizer(16, 4, projected=True) if projected else FiniteScalarQuantizer(16, 4, [2, 2, 2, 2])
    )
    quantizer.initialized.fill_(True)
    before = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    driver = Driver(quantizer, CodebookRestart(initialize_after=0, restart_every=1))
    for _ in range(3):
        driver.step(torch.rand(20, 4))
    assert all(torch.equal(tensor, before[name]) for name, tensor in quantizer.state_dict().items())
