"""Costs equal fvcore's count and the paper's figures."""

import logging

import pytest
import torch

import rmt
from rmt.modeling import flops
from rmt.modeling.registry import SHIPPED_DIGESTS
from rmt.variants import OWN_VARIANTS, VARIANTS

PAPER = {"rmt_t": 2.469, "rmt_s": 4.470, "rmt_b": 9.699, "rmt_l": 18.203}


@pytest.fixture(scope="module")
def table() -> dict[str, dict]:
    return flops.model_table()


def test_the_papers_unit(table: dict[str, dict]) -> None:
    for name, expected in PAPER.items():
        assert round(table[name]["fvcore_gmacs_1024"], 3) == expected
        assert round(table[name]["fvcore_gmacs_1024"], 1) == VARIANTS[name].published.gflops
    plain = [round(table[name]["gmacs_1e9"], 3) for name in PAPER]
    assert plain == [2.651, 4.800, 10.414, 19.545]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"token_labels": True},
        {"stem": "patch", "downsample": "merge", "head_hidden": 0, "full_attention": (True,) * 4},
    ],
)
def test_equals_fvcore(options: dict, unchecked_annotations: None) -> None:
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    model = rmt.create_model("rmt_nano", num_classes=10, **options).eval()
    for module in model.modules():
        if isinstance(module, rmt.ManhattanAttention):
            module.backend = "plain"  # fvcore counts nothing for a fused call
    for size in ((64, 96), (57, 31)):
        analysis = FlopCountAnalysis(model, torch.zeros(1, 3, *size))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert flops.count(model, size).macs == analysis.total()


def test_counting_leaves_the_model_alone() -> None:
    model = rmt.create_model("rmt_nano", in_chans=1)
    flops.count(model, 64)
    assert not any(p.is_meta for p in model.parameters())
    assert model.training
    assert {m.backend for m in model.modules() if isinstance(m, rmt.ManhattanAttention)} == {None}


def test_any_network_can_be_counted() -> None:
    layer = torch.nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert flops.count(layer, (10, 20)) == flops.Flops(216, products=216 * 200, norms=0)


def test_full_attention_costs_the_square_of_the_map() -> None:
    def products(size: int, full: bool) -> int:
        options = {"full_attention": (full,) * 4, "device": "meta"}
        return flops.count(rmt.create_model("rmt_nano", **options), size).products

    for size in (64, 128):
        more = 0
        for stage, (depth, dim) in enumerate(zip((1, 1, 2, 1), (32, 64, 96, 128), strict=True)):
            side = size // 4 // 2**stage
            more += depth * 2 * dim * side**2 * (side**2 - 2 * side)
        assert products(size, True) - products(size, False) == more


def test_rows(table: dict[str, dict]) -> None:
    starred = {f"{name}_tl" for name in ("rmt_s", "rmt_b", "rmt_l")}
    assert set(table) == set(VARIANTS) | starred
    assert {name for name, row in table.items() if row["own"]} == set(OWN_VARIANTS)
    for name, row in table.items():
        assert isinstance(row["params"], int)
        assert isinstance(row["macs"], int)
        assert row["macs"] / 1e9 == row["gmacs_1e9"]
        if not row["own"]:
            assert row["params"] / 1e6 == pytest.approx(row["published_params_m"], rel=0.06), name
    assert table["rmt_s_tl"]["params"] == 27_480_240
    assert table["rmt_s_tl"]["top1_published"] == 84.8
    assert table["rmt_s"]["published_gmacs_fvcore_1024"] == 4.5
    assert table["rmt_nano"]["top1_published"] is None
    shipped = {name: row["weights"] for name, row in table.items() if row["weights"]}
    assert shipped == {"rmt_nano": SHIPPED_DIGESTS}


def test_text(table: dict[str, dict]) -> None:
    text = flops.format_table(table)
    for words in ("rmt_s_tl", "27,480,240", "4.470", "4.800", "84.8", "not in the paper", "1024^3"):
        assert words in text
    for name, digest in SHIPPED_DIGESTS.items():
        assert f"weights in this package: {name}, SHA-256 {digest}" in text
