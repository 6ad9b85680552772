"""Work and memory of a large image: in proportion to its pixels, and within 6 GB."""

import math
import re
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rmt.segmentation import create_segmenter


def work(height: int, width: int) -> int:
    """Return the multiply-accumulates, times two, of one image, without computing anything."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        create_segmenter("semantic_fpn", "rmt_s").eval()(torch.zeros(1, 3, height, width))
    return counter.get_total_flops()


def test_work_grows_with_the_pixels() -> None:
    """Lines of decomposed attention, and stage 4's full one, get longer: the power is near 1."""
    exponent = math.log(work(2048, 2048) / work(512, 512)) / math.log(16)
    assert 1 < exponent < 1.1


@pytest.mark.slow
def test_a_large_image_fits_into_6_gb() -> None:
    code = (
        "import torch, rmt, numpy\n"
        "model = rmt.create_segmenter('semantic_fpn', 'rmt_s').eval()\n"
        "with torch.inference_mode(): model(torch.randn(1, 3, 1024, 2048))\n"
        "rmt.Predictor(model, min_size=0)(numpy.zeros((1024, 2048, 3), 'uint8'))\n"
        "print(open('/proc/self/status').read())\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    # Not getrusage's peak: a child inherits there what its parent once held.
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert int(kilobytes) * 1024 < 6e9
