"""The architecture table: the values of paper and release, and overrides."""

import subprocess
import sys
from pathlib import Path

import pytest

import rmt
from rmt.messages import did_you_mean
from rmt.variants import PAPER_VARIANTS, VARIANT_FIELDS, VARIANTS, get_variant, variant_overrides

# blocks, channels, heads, feed-forward ratios, b, full attention, LayerScale, drop path
RELEASE = {
    "rmt_t": (
        (2, 2, 8, 2),
        (64, 128, 256, 512),
        (4, 4, 8, 16),
        (3, 3, 3, 3),
        (6, 6, 8, 8),
        2,
        4,
        0.1,
    ),
    "rmt_s": (
        (3, 4, 18, 4),
        (64, 128, 256, 512),
        (4, 4, 8, 16),
        (4, 4, 3, 3),
        (6, 6, 8, 8),
        3,
        4,
        0.15,
    ),
    "rmt_b": (
        (4, 8, 25, 8),
        (80, 160, 320, 512),
        (5, 5, 10, 16),
        (4, 4, 3, 3),
        (7, 7, 8, 8),
        3,
        2,
        0.4,
    ),
    "rmt_l": (
        (4, 8, 25, 8),
        (112, 224, 448, 640),
        (7, 7, 14, 20),
        (4, 4, 3, 3),
        (8, 8, 8, 8),
        3,
        2,
        0.5,
    ),
}


@pytest.mark.parametrize("name", RELEASE)
def test_the_releases_models(name: str) -> None:
    depths, dims, heads, ratios, decay_max, first_full, first_scaled, drop_path = RELEASE[name]
    variant = VARIANTS[name]
    assert (variant.depths, variant.dims, variant.heads) == (depths, dims, heads)
    assert (variant.mlp_ratios, variant.decay_max) == (ratios, decay_max)
    assert variant.full_attention == tuple(stage >= first_full for stage in range(4))
    assert variant.layer_scale == tuple(stage >= first_scaled for stage in range(4))
    assert variant.drop_path_rate == drop_path
    assert variant.reductions == (4, 8, 16, 32)
    widths = [dim // heads for dim, heads in zip(dims, heads, strict=True)]
    assert widths == [16, 32, 32, 32]


def test_the_strict_comparison() -> None:
    for name, depths in {"rmt_swin_t": (2, 2, 6, 2), "rmt_swin_s": (2, 2, 18, 2)}.items():
        variant = VARIANTS[name]
        assert variant.depths == depths
        assert variant.dims == (96, 192, 384, 768)
        assert variant.heads == (3, 6, 12, 24)
        assert (variant.mlp_ratios, variant.decay_max) == ((4,) * 4, (8,) * 4)
        assert (variant.stem, variant.downsample, variant.cpe) == ("patch", "merge", False)
    deit = VARIANTS["rmt_deit_s"]
    assert (deit.depths, deit.dims, deit.heads, deit.reductions) == ((12,), (384,), (6,), (16,))
    assert deit.full_attention == (True,)


def test_every_variant_is_complete() -> None:
    for name, variant in VARIANTS.items():
        assert variant.name == name
        assert (variant.published is None) == (name not in PAPER_VARIANTS)
        assert variant_overrides(variant) == {}
        assert hash(variant) == hash(VARIANTS[name])


def test_overrides_are_remembered() -> None:
    variant = get_variant("rmt_s", lce=False, depths=[1, 1, 1, 1])
    assert variant.depths == (1, 1, 1, 1)
    assert variant_overrides(variant) == {"lce": False, "depths": (1, 1, 1, 1)}
    assert get_variant("rmt_s", **variant_overrides(variant)) == variant
    assert get_variant("rmt_s", lce=True) == VARIANTS["rmt_s"]
    assert set(variant_overrides(variant)) <= set(VARIANT_FIELDS)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"heads": (4, 4, 8)}, r"heads has 3 entries for 4 stages: \(4, 4, 8\)"),
        ({"depths": (1, 1)}, "dims has 4 entries for 2 stages"),
        ({"heads": (0, 4, 8, 16)}, "64 channels on 0 heads"),
        ({"dims": (63, 128, 256, 512)}, "63 channels on 4 heads.*even integer"),
        ({"stem": "conv3"}, "stem is 'conv3'; choose conv or patch"),
        ({"published": None}, "unknown option 'published'"),
    ],
)
def test_mistakes_are_named(fields: dict, words: str, unchecked_annotations: None) -> None:
    with pytest.raises(ValueError, match=words):
        get_variant("rmt_s", **fields)


def test_nearest() -> None:
    assert did_you_mean("rmt_m", VARIANTS).startswith("; did you mean 'rmt_")
    assert did_you_mean("xyz", ["abc"]) == " (known: abc)"
    assert did_you_mean("xyz", map(str, range(13))) == ""


def test_the_table_needs_no_torch() -> None:
    """Imported without the package's ``__init__``, which registers the models with timm."""
    code = (
        "import sys, types; package = types.ModuleType('rmt'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['rmt'] = package; import rmt.variants; "
        "assert 'torch' not in sys.modules; print(len(rmt.variants.VARIANTS))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, Path(rmt.variants.__file__).parent],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(out.stdout) == len(VARIANTS)
