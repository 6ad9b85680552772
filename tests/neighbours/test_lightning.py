"""RMT in a LightningModule of one's own, and under Fabric."""

import lightning
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import rmt
from forms import image


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = rmt.create_model("rmt_nano", num_classes=3)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(image(32, 48, batch=8), torch.arange(8) % 3), batch_size=4)


def test_module(tmp_path) -> None:
    """What its checkpoint holds is read as the network."""
    module = Classifier()
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    before = module.network.head.fc.weight.detach().clone()
    trainer.fit(module, loader())
    assert trainer.global_step == 2
    assert not module.network.head.fc.weight.equal(before)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = rmt.load(tmp_path / "last.ckpt")
    x = image()
    with torch.no_grad():
        assert again(x).equal(module.network.eval()(x))


def test_fabric() -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    network = rmt.create_model("rmt_nano", num_classes=3)
    network, optimizer = fabric.setup(network, torch.optim.AdamW(network.parameters(), lr=1e-3))
    losses = []
    for images, labels in fabric.setup_dataloaders(loader()):
        loss = F.cross_entropy(network(images), labels)
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert len(losses) == 2
    assert all(0 < loss < 5 for loss in losses)
