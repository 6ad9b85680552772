"""The learning curve: the loss of every logged step, and a few metrics."""

from pathlib import Path

from rmt.tools.report import logged_losses


def test_the_losses_of_a_resumed_run_are_one_curve(tmp_path: Path) -> None:
    """What was trained again counts as in the last log; the tenth log comes after the second."""
    for version, rows in (
        (10, "0.5,3,\n,3,90\n"),
        (2, "2.5,1,\n"),
        (0, "3.0,0,\n2.0,1,\n,1,80\n1.0,2,\n"),
    ):
        folder = tmp_path / "logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"loss,step,val/top1\n{rows}")
    assert logged_losses(tmp_path) == {0: 3.0, 1: 2.5, 2: 1.0, 3: 0.5}
    assert logged_losses(tmp_path / "elsewhere") == {}
