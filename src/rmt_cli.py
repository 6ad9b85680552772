"""The command ``rmt``: one verb, one public function.

This module lies beside the package because ``import rmt`` brings torch and timm, and help must not
wait for them. Each verb imports what it runs. It is long because it is a list: the verbs know
nothing of each other.
"""

from __future__ import annotations

import argparse
import errno
import io
import json
import os
import runpy
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_TRAIN_HELP = """\
Examples; any key of the recipe can be set by an option:

  rmt train small/digits
  rmt train small/folder --data.root DIR          DIR holds one folder of images per class
  rmt train imagenet/rmt_s --data.root DIR --trainer.devices 8 --trainer.num_nodes 4
  rmt train small/folder --data.root DIR --model.checkpoint rmt_s.pth      fine-tune

--help-keys explains every key, and --print_config shows every key with its value as YAML. On Ctrl-C
or SIGTERM the current step is finished, the state is saved, and the exit status is 130 or 143; the
same command with --resume continues exactly where the run stopped.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status (2 for a mistake in the call)."""
    parser = argparse.ArgumentParser(
        prog="rmt",
        description="RMT vision backbones: train, evaluate, predict, explain, convert.",
        epilog="`rmt VERB --help` shows the options of a verb.",
    )
    version = runpy.run_path(str(Path(__file__).with_name("rmt") / "version.py"))["__version__"]
    parser.add_argument("--version", action="version", version=f"rmt {version}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    adders = (
        _models,
        _train,
        _eval,
        _predict,
        _convert,
        _export,
        _benchmark,
        _explain,
        _label,
        _annotations,
        _demo,
    )
    for add in adders:
        add(verbs)
    args, rest = parser.parse_known_args(argv)
    if rest and not getattr(args, "takes_overrides", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.overrides = rest
    args.words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be any bytes
    try:
        if getattr(args, "needs_torch", True):
            from rmt.allocator import keep_memory

            keep_memory()  # the whole process is ours
        return args.run(args) or 0
    except BrokenPipeError:  # `rmt ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, FloatingPointError) as error:
        from rmt.messages import printable

        print(f"rmt: {printable(error, keep=chr(10), limit=20_000)}", file=sys.stderr)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            print(
                "Free some space, or name a folder on another disk, and run the same command "
                "again; `rmt train` continues with --resume.",
                file=sys.stderr,
            )
        return 2
    except KeyboardInterrupt:
        print("rmt: interrupted", file=sys.stderr)
        return 130


def _verb(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], int | None], summary: str, **kw: Any
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(
        name,
        help=summary,
        description=summary,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # else --data.root could pass for an option of ours
        **kw,
    )
    parser.set_defaults(run=run)
    return parser


def _models(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> None:
        # Counting takes seconds, and so does importing torch: the files are those of
        # rmt.modeling.flops, read without importing it.
        folder = Path(__file__).with_name("rmt") / "modeling"
        print((folder / "models.txt").read_text(encoding="utf-8"), end="")
        _write(args.json, json.loads((folder / "models.json").read_bytes()))

    parser = _verb(verbs, "models", run, "List the models with parameters, FLOPs and accuracy.")
    parser.set_defaults(needs_torch=False)
    _json_option(parser)


def _run_train(args: argparse.Namespace) -> int:
    if args.json and not (args.dry_run or args.print_config):
        raise ValueError("--json goes with --dry-run; a run writes metrics.json")
    asked = args.dry_run or args.print_config or args.help_keys or args.find_lr
    if args.recipe is None and (args.overrides or asked):
        raise ValueError(
            "name a recipe or a YAML file; `rmt train --list` prints the names of the recipes"
        )
    if args.list or args.recipe is None:
        from rmt.recipes import summaries

        print("\n".join(summaries()))
    elif args.help_keys:
        from rmt.tools.reference import help_keys

        print(help_keys(args.recipe, args.overrides))
    elif args.print_config or args.dry_run:
        from rmt.training.dry_run import dry_run, show

        described = dry_run(args.recipe, args.overrides, try_data=not args.print_config)
        print(show(described, only_recipe=args.print_config))
        _write(args.json, described)
    elif args.find_lr:
        from rmt.tools.train import find

        find(args.recipe, overrides=args.overrides, out=args.out, steps=args.find_lr)
    else:
        from rmt.tools.train import train

        return train(args.recipe, overrides=args.overrides, out=args.out, resume=args.resume)
    return 0


def _train(verbs: Any) -> None:
    parser = _verb(
        verbs, "train", _run_train, "Train the model that a recipe describes.", epilog=_TRAIN_HELP
    )
    parser.set_defaults(takes_overrides=True)
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="name of a shipped recipe, or a YAML file"
    )
    _out_option(parser, "folder of the run (default: runs/RECIPE)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        choices=(True, "auto"),
        metavar="auto",
        help="continue the run in --out; `--resume auto` starts it if there is none yet",
    )
    parser.add_argument("--list", action="store_true", help="list the shipped recipes and exit")
    parser.add_argument(
        "--help-keys", action="store_true", help="explain every key of the recipe and exit"
    )
    parser.add_argument(
        "--print_config", action="store_true", help="print every key with its value and exit"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="show size, cost, memory, time and learning rates, try the data, and exit",
    )
    parser.add_argument(
        "--find-lr",
        nargs="?",
        type=int,
        const=100,
        metavar="STEPS",
        help="train for STEPS (default: 100) with growing learning rates, draw the loss, and exit",
    )
    _json_option(parser, "with --dry-run: also write the result to FILE")


def _eval(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> None:
        from rmt.training.evaluate import record_evaluation

        record = record_evaluation(
            args.checkpoint,
            overrides=args.overrides,
            weights=args.weights,
            engine=args.engine,
            knn=args.knn,
            report=args.report,
        )
        if record:  # empty in all processes but the first
            from rmt.messages import printable  # the names may be those of classes

            for name, value in record["metrics"].items():
                print(
                    f"{printable(name):>24}  {value if isinstance(value, int) else f'{value:.4f}'}"
                )
            _write(args.json, record)
            if args.report:
                print(f"report  {args.report / 'index.html'}")

    parser = _verb(verbs, "eval", run, "Evaluate a model on a data set.")
    parser.set_defaults(takes_overrides=True)
    parser.epilog = (
        "The test split is evaluated; the validation split if there is no test split; all images\n"
        "if the data set has no splits and the model was not trained on it. The recipe comes with\n"
        "the weights; any of its keys can be set by an option, such as --data.root DIR."
    )
    _checkpoint_option(parser)
    _weights_option(parser)
    _engine_option(parser)
    text = "classify by the K nearest training images, to evaluate a classifier's features"
    parser.add_argument("--knn", type=int, default=0, metavar="K", help=text)
    parser.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write plots, a table of all images with the worst first, and a page with them to DIR",
    )
    _json_option(parser)


def _run_predict(args: argparse.Namespace) -> int:
    from rmt.tools.embeddings import embed_files
    from rmt.tools.predict import describe, predict_files
    from rmt.tools.records import RecordWriter
    from rmt.tools.sources import listed

    sources = [*args.images, *(listed(args.from_file) if args.from_file else ())]
    options = {name: getattr(args, name) for name in args.task_options if name in args}
    options |= {"device": args.device, "batch_size": args.batch_size}
    if args.embeddings and (args.json or args.out or args.annotations or args.engine):
        raise ValueError("--embeddings writes features instead of predictions; name it alone")
    if args.embeddings:
        records = embed_files(sources, args.checkpoint, args.embeddings, **options)
    else:
        written = {"annotations": args.annotations, "annotations_format": args.to}
        written |= {"out": args.out, "engine": args.engine}
        records = predict_files(sources, args.checkpoint, **written, **options)
    failed = False
    with RecordWriter(args.json) as writer:
        for record in records:
            writer.write(record)
            print(describe(record), flush=True)
            failed = failed or "error" in record
    return int(failed)


def _predict(verbs: Any) -> None:
    parser = _verb(
        verbs,
        "predict",
        _run_predict,
        "Predict images and videos: files, folders, glob patterns.",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image, video, folder or glob pattern; - reads one image from standard input",
    )
    parser.add_argument(
        "--from-file",
        metavar="FILE",
        help="also predict the files listed in FILE, one path per line; - is standard input",
    )
    _checkpoint_option(parser, required=False)
    _engine_option(parser)
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, ... or auto (default): a GPU if there is one"
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="most images to predict at once (default: 16 for classifiers, else 1)",
    )
    _out_option(
        parser,
        "draw the predictions on images and videos, and write these (and label maps) there",
    )
    _json_option(
        parser,
        "write the predictions to FILE: a JSON array, or one record per line if it ends in .jsonl",
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FILE",
        help="write a vector of features for each image to FILE (.parquet), instead of predictions",
    )
    parser.set_defaults(task_options=_options_of_tasks(parser))


def _options_of_tasks(parser: argparse.ArgumentParser) -> list[str]:
    """Add the options of each task, which are absent unless given; return their names."""
    names = ["flip"]

    def group(title: str, **options: tuple[Callable[[str], Any], str, str]) -> Any:
        added = parser.add_argument_group(title)
        for name, (kind, metavar, text) in options.items():
            flag = f"--{name.replace('_', '-')}"
            added.add_argument(
                flag, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text
            )
            names.append(name)
        return added

    group(
        "classifiers (--score, too: the minimum, 0.5 for a model of several labels, else 0)",
        top=(int, "K", "most classes to list (default: 5; of several labels, all)"),
    )
    objects = group(
        "detectors",
        score=(float, "SCORE", "minimum score of a detection (default: 0.05)"),
        tile=(int, "PIXELS", "cut large images into tiles of this side (default: 0, no tiles)"),
        tile_overlap=(
            float,
            "SHARE",
            "of neighbouring tiles, a share of the side (default: 0.2)",
        ),
        tile_batch_size=(int, "N", "tiles that pass the network together (default: 1)"),
    )
    _annotation_options(objects)
    group(
        "segmenters (default: as the weights were evaluated in training)",
        min_size=(int, "PIXELS", "resize the short side to this; 0 keeps the image's size"),
        max_size=(int, "PIXELS", "the long side is at most this"),
        window=(int, "PIXELS", "average over windows of this side; 0: the whole image at once"),
        stride=(int, "PIXELS", "between windows (default: two thirds of the window)"),
        scales=(_numbers, "S,S,...", "average over resized images, such as 0.5,1,1.5"),
    ).add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        default=argparse.SUPPRESS,
        help="average with the mirrored image",
    )
    return names


def _annotation_options(group: Any) -> None:
    group.add_argument(
        "--annotations",
        type=Path,
        metavar="DIR",
        help="write images and objects to DIR as a data set, to correct in an annotation tool",
    )
    group.add_argument(
        "--annotations-format",
        dest="to",
        metavar="FORMAT",
        default="coco",
        help="of this data set: coco, voc or yolo (default: coco)",
    )


def _convert(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> None:
        from rmt.weights.load import convert

        print(convert(args.source, args.destination, weights=args.weights))

    parser = _verb(verbs, "convert", run, "Convert a checkpoint to .safetensors.")
    parser.add_argument("source", help="checkpoint of the release or of this package")
    parser.add_argument("destination", help=".safetensors file to write")
    _weights_option(parser)


def _export(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> None:
        from rmt.deployment.export import export

        names = ("format", "dynamic", "int8", "calibration", "check", "force", "img_size")
        options = {name: getattr(args, name) for name in names}
        report = export(args.model, args.destination, batch_size=args.batch, **options)
        print("\n".join(report.lines()))
        _write(args.json, report.as_dict())

    parser = _verb(verbs, "export", run, "Export a model for another runtime, and compare both.")
    parser.add_argument("model", help="checkpoint, or name of weights in this package")
    parser.add_argument("destination", help="new .onnx, .xml or .pt2 file; of Mask R-CNN, a folder")
    text = "onnx, openvino, torch-export or aoti (compiled for this machine)"
    parser.add_argument("--format", required=True, metavar="FORMAT", help=text)
    text = "side, or height and width, of the images (default: those of the weights)"
    parser.add_argument("--img-size", type=int, nargs="+", metavar="PIXELS", help=text)
    text = "number of images at once (default: 1)"
    parser.add_argument("--batch", type=int, default=1, metavar="N", help=text)
    text = "take images of all sizes, and any number of them; not for detectors"
    parser.add_argument("--dynamic", action="store_true", help=text)
    text = "weights and activations in 8 bits (openvino or onnx), with --calibration"
    parser.add_argument("--int8", action="store_true", help=text)
    text = "images for --int8; every third is held out, to compare on"
    parser.add_argument("--calibration", metavar="DIR", help=text)
    parser.add_argument(
        "--check", metavar="DIR", help="images to compare on (default: three photos)"
    )
    text = "keep an --int8 export that agrees too little with float32"
    parser.add_argument("--force", action="store_true", help=text)
    _json_option(parser)


def _run_benchmark(args: argparse.Namespace) -> int:
    from rmt.deployment.benchmark import benchmark
    from rmt.deployment.benchmark_plots import check_plot, write_plot
    from rmt.deployment.benchmark_tables import markdown, record, write_csv

    names = ("img_size", "batch_size", "precision", "engine", "form", "threads", "rounds", "device")
    options = {name: getattr(args, name) for name in names}
    if args.plot:
        check_plot(args.models, args.img_size)
    report = benchmark(args.models, **options, tell=lambda line: print(line, file=sys.stderr))
    print(markdown(report))
    _write(args.json, record(report, shlex.join(["rmt", *args.words])))
    if args.csv:
        write_csv(report, args.csv)
    if args.plot:
        write_plot(report, args.plot)
    return int(bool(report.failed))


def _benchmark(verbs: Any) -> None:
    parser = _verb(
        verbs, "benchmark", _run_benchmark, "Measure time, memory and size of models, in turns."
    )
    text = "name of a model of ours or of timm (randomly initialised), checkpoint or exported file"
    parser.add_argument("models", nargs="+", metavar="MODEL", help=text)

    def words(name: str, default: Any, metavar: str, text: str, kind: Any = str) -> None:
        parser.add_argument(
            f"--{name}", nargs="+", type=kind, default=default, metavar=metavar, help=text
        )

    text = "sides, or heights and widths such as 800x1280 (default: each model's own)"
    words("img-size", None, "PIXELS", text, _size)
    words("batch-size", [1], "N", "numbers of images at once (default: 1)", int)
    words("precision", ["float32"], "NAME", "float32 (the default) and bf16")
    text = "torch (the default), compile, onnx, openvino, torch-export and aoti"
    words("engine", ["torch"], "NAME", text)
    text = "of RMT: fused (the default), plain (as trained) and reference (as the release computes)"
    words("form", ["fused"], "NAME", text)
    text = "CPU threads (default: PyTorch's number); with 1, CPU time is compared"
    parser.add_argument("--threads", type=int, metavar="N", help=text)
    text = "times that each variant runs (default: 9)"
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help=text)
    text = "cpu, cuda, ... or auto (default): a GPU if there is one"
    parser.add_argument("--device", default="auto", help=text)
    _json_option(parser)
    text = "also write the rows to FILE, with the columns of timm's benchmark first"
    parser.add_argument("--csv", type=Path, metavar="FILE", help=text)
    text = "draw time and memory against pixels, or accuracy against time, as a PNG"
    parser.add_argument("--plot", type=Path, metavar="FILE", help=text)


def _explain(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> None:
        from rmt.tools.explain import explain

        for path in explain(args.image, args.checkpoint, args.out, at=args.at).values():
            print(path)

    parser = _verb(verbs, "explain", run, "Draw what one position of an image attends to.")
    parser.add_argument("image", help="image file")
    _checkpoint_option(parser)
    parser.add_argument(
        "--at",
        type=_position,
        default=(0.5, 0.5),
        metavar="Y,X",
        help="position as fractions of height and width (default: 0.5,0.5: the centre)",
    )
    _out_option(parser, "folder for the plots (default: explain)", default="explain")


def _label(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> None:
        from rmt.classification.teacher import label_folder

        count = label_folder(
            args.teacher,
            args.data,
            args.out,
            kind=args.kind,
            weights=args.weights,
            img_size=args.img_size,
            device=args.device,
        )
        print(f"{count} label maps written to {args.out}")

    parser = _verb(
        verbs, "make-token-labels", run, "Label images with a teacher network, for token labelling."
    )
    parser.add_argument("teacher", help="a timm model trained on the classes of the data")
    parser.add_argument("--data", required=True, metavar="DIR", help="as data.root in a recipe")
    parser.add_argument(
        "--data.format", dest="kind", metavar="FORMAT", default="auto", help="as in a recipe"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the label maps"
    )
    parser.add_argument(
        "--weights", default="", metavar="FILE", help="the teacher's (default: timm's, downloaded)"
    )
    parser.add_argument(
        "--img-size",
        type=int,
        metavar="PIXELS",
        help="images are resized to a square of this side for the teacher (default: its own)",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")


def _annotations(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> None:
        from rmt.detection.convert import convert

        for folder in convert(args.source, args.destination, to=args.to, read_as=args.read_as):
            print(folder)

    parser = _verb(verbs, "convert-dataset", run, "Convert a detection data set to another format.")
    parser.epilog = (
        "COCO keeps everything. YOLO keeps boxes, and masks of a single polygon. VOC keeps boxes."
    )
    parser.add_argument("source", help="folder of the data set")
    parser.add_argument("destination", help="new folder; the images are copied into it")
    parser.add_argument(
        "--to", required=True, metavar="FORMAT", help="format to write: coco, voc or yolo"
    )
    parser.add_argument(
        "--from",
        dest="read_as",
        metavar="FORMAT",
        default="auto",
        help="format of the source (default: recognised)",
    )


def _demo(verbs: Any) -> None:
    def run(args: argparse.Namespace) -> int:
        from rmt.tools.demo import run_demo

        return run_demo(args.out)

    parser = _verb(
        verbs, "demo", run, "Train, evaluate and predict on real images, in about two minutes."
    )
    _out_option(parser, "folder of the run (default: runs/demo)", default="runs/demo")


def _position(text: str) -> tuple[float, float]:
    y, _, x = text.partition(",")
    try:
        return float(y), float(x)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a position; write y,x such as 0.5,0.5"
        ) from None


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size; write 224, or height and width as 800x1280"
        ) from None


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a list of numbers; write 0.5,1,1.5"
        ) from None


def _checkpoint_option(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    text = "the weights: folder of a run, .ckpt, .safetensors, .pth of the release, "
    text += "an exported file or folder, "
    text += "hf-hub:user/name, or rmt_nano.tiny_imagenet, which come with this package"
    text += "" if required else " (the default)"
    parser.add_argument("--checkpoint", required=required, metavar="PATH", help=text)


def _engine_option(parser: argparse.ArgumentParser) -> None:
    text = "what runs the network: torch, compile, onnx, openvino, torch-export or aoti "
    text += "(default: torch; the runtime of its format for an exported file)"
    parser.add_argument("--engine", metavar="NAME", help=text)


def _weights_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=("raw", "ema"),
        help="which weights of a file that holds both (default: the better ones)",
    )


def _out_option(parser: argparse.ArgumentParser, text: str, default: str | None = None) -> None:
    parser.add_argument("--out", type=Path, metavar="DIR", default=default, help=text)


def _json_option(
    parser: argparse.ArgumentParser, text: str = "also write the result to FILE"
) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help=text)


def _write(path: Path | None, content: Any) -> None:
    if path is not None:
        from rmt.files import write_json

        write_json(path, content)


if __name__ == "__main__":
    sys.exit(main())
