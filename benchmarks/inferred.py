"""Count parameters and FLOPs of each reading of Table 6: the table in docs/inferred.md.

python benchmarks/inferred.py
"""

import argparse
from itertools import product

import rmt
from rmt.modeling.flops import count

NAMES = ("rmt_deit_s", "rmt_swin_t", "rmt_swin_s")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print("LCE    conv   full   " + "  ".join(f"{name:>15}" for name in NAMES))
    for lce, full, conv in product((True, False), (False, True), (False, True)):
        if conv and not lce:
            continue
        cells = []
        for name in NAMES:
            options = {"lce": lce, "mlp_conv": conv}
            if full and name != "rmt_deit_s":  # its only stage has full attention anyway
                options["full_attention"] = (False, False, True, True)
            model = rmt.create_model(name, **options)
            params = sum(p.numel() for p in model.parameters())
            cells.append(f"{params / 1e6:.2f} M, {count(model).gmacs_1e9:.2f}")
        print(f"{lce!s:6} {conv!s:6} {full!s:6} " + "  ".join(f"{cell:>15}" for cell in cells))


if __name__ == "__main__":
    main()
