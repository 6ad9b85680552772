"""Deterministic weights for any model of the release: the rule behind all golden numbers.

Each tensor is drawn from a generator seeded with its own name in the release's files, so a
golden file stores names, shapes and results, and no weights.
"""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rmt.weights.release import Renamed

GOLDEN = Path(__file__).parent / "golden"
# A classifier's last layers, which no detector or segmenter has.
_HEAD = ("proj.", "norm.", "head.", "aux_head.")

# Scale of a weight by the end of its name; first match counts, all others have 1. They keep
# the residual stream finite over many blocks and make scores and deltas non-trivial.
_GAINS = {
    ".pos.conv.weight": 0.2,
    "retina_cls.weight": 4,
    "retina_reg.weight": 1,
    "rpn_cls.weight": 1.5,
    "rpn_reg.weight": 0.125,
    **{f"bbox_head.{i}.fc_cls.weight": 20 for i in range(3)},
    **{f"bbox_head.{i}.fc_reg.weight": 8 for i in range(3)},
    "fc_cls.weight": 4,
    "fc_reg.weight": 2,
    "conv_logits.weight": 6,
    "conv_seg.weight": 2,
}


def release_keys(name: str) -> dict[str, list[int]]:
    """Return the release's name -> shape of one of its models (``golden/keys/NAME.json``).

    A layout may extend another one, or begin with the ``backbone`` of a classifier.
    """
    layout = json.loads((GOLDEN / "keys" / f"{name}.json").read_text())
    base = release_keys(layout["extends"]) if "extends" in layout else {}
    if "backbone" in layout:
        classifier = release_keys(layout["backbone"])
        body = {key: shape for key, shape in classifier.items() if not key.startswith(_HEAD)}
        base = {f"backbone.{key}": shape for key, shape in body.items()}
    return base | layout["state_dict"]


def golden_state(
    keys: Mapping[str, Sequence[int]], overrides: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Tensor]:
    """Return float32 tensors under the release's names.

    Geometry buffers (``Relpos.*``) are left out: the models compute theirs.

    Args:
        keys: the release's name -> shape.
        overrides: values of some tensors that were chosen by hand (biases of score layers).
    """
    overrides = overrides or {}
    return {
        key: torch.tensor(overrides[key]) if key in overrides else _draw(key, tuple(shape))
        for key, shape in keys.items()
        if ".Relpos." not in key
    }


def abs_sum(state: Mapping[str, Tensor]) -> float:
    """Return the sum of magnitudes of all floating tensors, in float64.

    The golden files' ``weights_abs_sum`` counts the geometry buffers too; ``relpos.json`` has them.
    """
    return sum(t.double().abs().sum().item() for t in state.values() if t.is_floating_point())


def _draw(key: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    last = key.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last == "running_mean":
        return 0.1 * torch.randn(shape, generator=generator)
    if last == "running_var":
        return 0.75 + 0.5 * torch.rand(shape, generator=generator)
    if last in ("gamma_1", "gamma_2"):
        return 0.5 + 0.1 * torch.randn(shape, generator=generator)
    if len(shape) >= 2:
        gain = next((gain for end, gain in _GAINS.items() if key.endswith(end)), 1)
        fan_in = math.prod(shape) / shape[0]
        return torch.randn(shape, generator=generator) * (gain / math.sqrt(fan_in))
    if last == "weight":
        return 1 + 0.1 * torch.randn(shape, generator=generator)
    assert last == "bias", f"no rule for {key} {shape}"
    return 0.1 * torch.randn(shape, generator=generator)


def every_name_is_found_without_its_key(renamed: Renamed) -> None:
    """Check that a key that a file lacks is named as the release names it."""
    every = renamed.sources
    for ours in every:
        rest = {key: theirs for key, theirs in every.items() if key != ours}
        assert replace(renamed, sources=rest).name_in_file(ours) == every[ours]
