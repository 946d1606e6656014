"""Find objects in images: ``python tools/infer.py IMAGE... --checkpoint CKPT``."""

import argparse
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Find objects in images with a trained detector.")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, or folders of them")
    parser.add_argument("--checkpoint", required=True, help="checkpoint of a run; it carries config and class names")
    parser.add_argument("--config", help="a config file instead of the one in the checkpoint")
    parser.add_argument("--out-dir", default="vis", help="folder for the pictures (default: %(default)s)")
    parser.add_argument("--score-thr", type=float, default=0.3, help="least score shown (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="images at once (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda or cuda:<index> (default: cuda where there is one)")
    parser.add_argument("--json", metavar="FILE", help="also write all detections to this file")
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    return parser.parse_args()


def infer(args: argparse.Namespace) -> None:
    """Run the detector and print what it finds."""
    import json
    from collections import Counter

    from detkit.inference import DetInferencer

    inferencer = DetInferencer(args.checkpoint, args.device, args.config, score_thr=args.score_thr)
    found = inferencer(args.images, batch_size=args.batch_size, out_dir=args.out_dir)
    for one in found:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(one.names).items())
        print(f"{one.image}: {counts or 'nothing'}")
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        Path(args.json).write_text(json.dumps([one.to_dict() for one in found], indent=1) + "\n", encoding="utf-8")
        print(f"detections: {args.json}")
    print(f"pictures: {args.out_dir}")


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(infer, args, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
