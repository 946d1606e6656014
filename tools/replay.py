"""Do a training step again whose loss was not finite, and name the image it came from.

python tools/replay.py work_dirs/RUN/invalid_loss_iter_300/bundle.pth
python tools/replay.py BUNDLE --device cpu --anomaly
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Do a training step again from the bundle that a run left of it.")
    parser.add_argument("bundle", help="file that CheckInvalidLossHook wrote")
    parser.add_argument("--device", help="cpu, cuda or cuda:<index> (default: CUDA if present)")
    parser.add_argument(
        "--anomaly", action="store_true", help="go backward too, and name the operation with the first NaN"
    )
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    return parser.parse_args(arguments)


def replay(args: argparse.Namespace) -> None:
    from detkit.engine.run import replay as engine

    print(engine.replay(args.bundle, args.device, args.anomaly))


def main() -> None:
    args = parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout runs without being installed
    from detkit.engine.cli import run_cli

    run_cli(replay, args, show_traceback=args.traceback)


if __name__ == "__main__":
    main()
