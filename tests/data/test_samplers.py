"""Which sample comes when, and that a sample depends on nothing else."""

import numpy as np
import pytest
import torch

from rmt.data.loaders import SeededSamples, make_loader
from rmt.data.samplers import GroupedBatches, TrainBatches, times_before


class TestTrainBatches:
    def keys(self, **options: int) -> list[tuple[int, int, int]]:
        batches = TrainBatches(**{"size": 22, "batch_size": 4, "seed": 3} | options)
        assert len(list(batches)) == len(batches)
        return [key for batch in batches for key in batch]

    def test_an_incomplete_batch_is_dropped(self) -> None:
        assert len(self.keys()) == 20
        assert len(self.keys(size=3)) == 3  # but not the only one

    def test_processes_share_an_epoch(self) -> None:
        parts = [self.keys(rank=rank, world=2, batch_size=11) for rank in (0, 1)]
        assert sorted(i for part in parts for _, i, _ in part) == list(range(22))

    def test_repeats_of_an_image_go_to_different_processes(self) -> None:
        parts = [set(self.keys(rank=rank, world=2, repeats=2, batch_size=11)) for rank in (0, 1)]
        assert {i for _, i, _ in parts[0]} == {i for _, i, _ in parts[1]}
        assert not parts[0] & parts[1]

    def test_continuing(self) -> None:
        batches = TrainBatches(22, 4, seed=3)
        whole = list(batches)
        batches.resume(0, 2)
        batches.set_epoch(0)
        assert list(batches) == whole[2:]
        batches.set_epoch(1)
        second = list(batches)
        assert len(second) == 5
        batches.resume(0, 5)
        assert list(batches) == second

    def test_nothing(self) -> None:
        with pytest.raises(ValueError, match="the training split is empty"):
            TrainBatches(0, 4, seed=0)


def test_a_sample_depends_on_its_key_alone() -> None:
    def load(index: int) -> float:
        return index + torch.rand(()).item() + float(np.random.rand())  # noqa: NPY002 - timm draws from it

    dataset = SeededSamples(range(8), load, seed=1)
    batches = TrainBatches(8, 4, seed=1)
    expected = [[dataset[key] for key in batch] for batch in batches]
    before = torch.get_rng_state()
    assert [dataset[key] for key in next(iter(batches))] == expected[0]
    assert torch.equal(torch.get_rng_state(), before)
    for workers in (0, 2):
        loader = make_loader(dataset, batches, num_workers=workers, collate=list)
        assert list(loader) == expected
    assert dataset[0, 3, 0] != dataset[1, 3, 0] != dataset[0, 3, 1]


def test_batches_of_one_orientation() -> None:
    portrait = [bool(i % 3 == 0) for i in range(40)]
    batches = GroupedBatches(portrait, 4, seed=1)
    taken = list(batches)
    assert len(taken) == len(batches) == 10
    assert sorted(key[1] for batch in taken for key in batch) == list(range(40))
    mixed = [len({portrait[i] for _, i, _ in batch}) > 1 for batch in taken]
    assert sum(mixed) <= 1
    batches.resume(0, 4)
    assert list(batches) == taken[4:]
    batches.set_epoch(1)
    assert list(batches) != taken


def test_grouped_batches_of_two_processes_share_nothing() -> None:
    portrait = [i % 2 == 0 for i in range(20)]
    parts = [
        [key[1] for batch in GroupedBatches(portrait, 2, seed=0, rank=r, world=2) for key in batch]
        for r in range(2)
    ]
    assert len(parts[0]) == len(parts[1]) == 10
    assert not set(parts[0]) & set(parts[1])


class TestWeights:
    """Samples drawn with replacement, as often as their weights say."""

    WEIGHTS = torch.tensor([0.9] + [0.1 / 99] * 99)

    def test_how_often_each_comes(self) -> None:
        batches = TrainBatches(100, 10, seed=3, weights=self.WEIGHTS)
        keys = []
        for epoch in range(20):
            batches.set_epoch(epoch)
            keys += [key for batch in batches for key in batch]
        assert len(keys) == len(set(keys)) == 2000  # the augmentation of each is another one
        assert sum(index == 0 for _, index, _ in keys) == pytest.approx(1800, abs=60)

    def test_a_resumed_epoch_is_the_same(self) -> None:
        batches = TrainBatches(100, 10, seed=3, weights=self.WEIGHTS, repeats=2)
        whole = list(batches)
        batches.resume(0, 4)
        assert list(batches) == whole[4:]

    def test_copies_are_numbered(self) -> None:
        assert times_before(torch.tensor([5, 2, 5, 5, 2, 0])).tolist() == [0, 0, 1, 2, 1, 0]
