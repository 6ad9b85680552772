"""RMT under the parts that timm's train.py and validate.py are made of."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import CheckpointSaver

import rmt
from forms import image


@pytest.mark.parametrize("starred", [False, True])
def test_training(starred: bool, tmp_path: Path) -> None:
    """Layer decay, schedule, moving average, checkpoint, resuming."""
    options = {"num_classes": 3, "token_labels": starred}
    model = timm.create_model("rmt_nano", drop_path_rate=0.1, **options)
    task = ClassificationTask(model, criterion_kwargs={"smoothing": 0.1}, verbose=False)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, layer_decay=0.7)
    scheduler, _ = create_scheduler_v2(optimizer, num_epochs=2, warmup_epochs=0)
    task.setup_ema(decay=0.9)
    saver = CheckpointSaver(model, optimizer, checkpoint_dir=str(tmp_path))
    for epoch in range(2):
        task(image(32, 48, batch=3), torch.arange(3))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(epoch)
        scheduler.step(epoch + 1)
        saver.save_checkpoint(epoch, metric=float(epoch))
    again = timm.create_model("rmt_nano", **options)
    assert resume_checkpoint(again, str(tmp_path / "last.pth.tar"), log_info=False) == 2
    ours = rmt.load(tmp_path / "last.pth.tar")
    x = image()
    with torch.no_grad():
        expected = model.eval()(x)
        assert again.eval()(x).equal(expected)
        assert ours(x).equal(expected)
