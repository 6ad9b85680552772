"""Weights, gradients and optimizer state sharded over the processes (FSDP2), by Lightning."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from rmt.modeling.layers import Block

NAME = "fsdp2"


def strategy(name: str) -> str | Strategy:
    """Return the strategy for Lightning's Trainer; its own names are returned as they are.

    ``fsdp2`` shards over all processes. A checkpoint is still one file of full tensors, which
    everything in this package reads.
    """
    return WholeFileSharding() if name == NAME else name


class WholeFileSharding(ModelParallelStrategy):
    """FSDP2 over all processes of all machines, with checkpoints of one file."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Shard over all processes; Lightning's default is one replica per machine."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(network: nn.Module, mesh: DeviceMesh, *, sync_batchnorm: bool) -> None:
    """Shard the weights of ``network`` over ``mesh`` in place, block by block.

    The weights of a block are gathered only while it computes. Batch norm's statistics are buffers,
    which are not sharded; on accelerators, ``sync_batchnorm`` shares them over all processes.
    """
    if sync_batchnorm and mesh.device_type != "cpu":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    data_parallel = mesh["data_parallel"]
    for module in network.modules():
        if isinstance(module, Block):
            fully_shard(module, mesh=data_parallel)
    fully_shard(network, mesh=data_parallel)
