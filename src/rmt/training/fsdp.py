"""Weights, gradients and optimizer state cut over the processes (FSDP2), through Lightning."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from rmt.modeling.layers import Block

NAME = "fsdp2"


def strategy(name: str) -> str | Strategy:
    """Return what Lightning's Trainer takes for ``trainer.strategy``: its own names pass through.

    ``fsdp2`` shards over all processes; a checkpoint is still one file with whole tensors, which
    everything in this package reads.
    """
    return WholeFileSharding() if name == NAME else name


class WholeFileSharding(ModelParallelStrategy):
    """FSDP2 over all processes of all machines, with checkpoints of one file."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Shard over everything there is: Lightning's own default is one replica a machine."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(network: nn.Module, mesh: DeviceMesh, *, sync_batchnorm: bool) -> None:
    """Cut the weights of ``network`` over ``mesh`` in place, block by block.

    While one block computes, only its weights are whole. Batch norm's statistics are buffers, which
    stay whole; on accelerators they are made one over all processes if ``sync_batchnorm``.
    """
    if sync_batchnorm and mesh.device_type != "cpu":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    data_parallel = mesh["data_parallel"]
    for module in network.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=data_parallel)
    fully_shard(network, mesh=data_parallel)
