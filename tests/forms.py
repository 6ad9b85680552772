"""Every registered model in every form, made shallow: what the contract's tests run on.

A new variant is tested automatically. Widths are each variant's own, depths are cut to one block a
stage: no promise of the contract depends on more.
"""

import torch
from torch import Tensor, nn

import rmt
from rmt.variants import VARIANTS

# id -> arguments of create_model.
FORMS = {name: {"name": name} for name in rmt.list_models()}
FORMS |= {
    f"{name}_starred": {"name": name, "token_labels": True}
    for name, variant in VARIANTS.items()
    if variant.published and variant.published.top1_token_labels
}
# The ablations of Table 6 and every other switch, on the smallest body.
FORMS |= {
    f"nano_{what}": {"name": "rmt_nano"} | fields
    for what, fields in {
        "plain_attention": {"decay": False},
        "without_lce": {"lce": False},
        "without_cpe": {"cpe": False},
        "without_mlp_conv": {"mlp_conv": False},
        "patch_stem_merging": {"stem": "patch", "downsample": "merge"},
        "full_everywhere": {"full_attention": (True,) * 4},
        "layer_scale": {"layer_scale": (True,) * 4},
        "plain_head": {"head_hidden": 0},
        "starred_wide": {"token_labels": True, "aux_width": 256},
    }.items()
}
CLASSES = 7


def build(form: str, **options) -> rmt.RMT:
    """Make a shallow model of this form, with weights that let every branch matter."""
    depths = (1,) * len(VARIANTS[FORMS[form]["name"]].depths)
    options = {"num_classes": CLASSES, "depths": depths, "drop_path_rate": 0.0} | options
    model = rmt.create_model(**FORMS[form] | options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
            elif name.startswith(("head.fc", "aux_head")):
                parameter.normal_()
    return model.eval()


def image(height: int = 64, width: int = 96, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width)


def sizes_of_maps(model: rmt.RMT, height: int, width: int) -> list[tuple[int, int, int]]:
    """Return (C, h, w) of each stage: sizes round up."""
    info = zip(model.variant.dims, model.variant.reductions, strict=True)
    return [(dim, -(-height // stride), -(-width // stride)) for dim, stride in info]


def assert_all_learn(network: nn.Module, loss: Tensor) -> None:
    """Assert that the loss gives every parameter that is to be trained a finite gradient."""
    network.zero_grad()
    loss.backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all(), f"{name} has an infinite gradient"
