"""What do torchao's 8 bits save for RMT-S: size of the weights, and time of an image?

    python benchmarks/quantised.py [--rounds 9] [--note TEXT]

The fused network, plain and quantised, takes turns on one image of 224 x 224, eagerly, on one
thread of the CPU; the time is CPU time.
"""

import argparse
import copy
import platform
import statistics

import torch
from record import write_record
from torchao.quantization import (
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

import rmt
from rmt.deployment.timing import take_turns

CONFIGS = (Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig)


def size_of(network: torch.nn.Module) -> int:
    """Return the bytes of all weights, of quantised ones with their scales."""
    total = 0
    for tensor in network.state_dict().values():
        names = getattr(tensor, "tensor_data_names", None)
        parts = [getattr(tensor, name) for name in names] if names else [tensor]
        total += sum(part.nbytes for part in parts if part is not None)
    return total


def stop(name: str, error: Exception) -> None:
    raise SystemExit(f"{name}: {error}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--note", default="", help="what else is known of the machine")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rmt.keep_memory()
    networks = {"float32, fused": rmt.create_model("rmt_s").eval().fuse()}
    for config in CONFIGS:
        network = copy.deepcopy(networks["float32, fused"])
        quantize_(network, config())
        networks[config.__name__] = network
    image = torch.randn(1, 3, 224, 224)
    calls = {name: (lambda own=own: own(image)) for name, own in networks.items()}
    laps = take_turns(calls, rounds=args.rounds, device=image.device, failed=stop)
    rows = [
        {
            "network": name,
            "weights_mb": round(size_of(networks[name]) / 1e6),
            "ms_per_image": round(1e3 * statistics.median(lap.cpu for lap in own)),
        }
        for name, own in laps.items()
    ]
    for row in rows:
        print(row)
    path = write_record(
        "quantised",
        what="RMT-S with linear layers in 8 bits, by torchao",
        command=f"python benchmarks/quantised.py --rounds {args.rounds}",
        machine=f"one thread of {platform.processor() or platform.machine()}",
        notes=["one image of 224 x 224; medians, in turns", args.note],
        packages=["torch", "torchao"],
        rows=rows,
    )
    print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
