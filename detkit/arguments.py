"""The command-line arguments that training and testing share; imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

import argparse

__all__ = ["LAUNCHERS", "default_argument_parser"]

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def default_argument_parser(description: str) -> argparse.ArgumentParser:
    """A parser of a config, a device and the processes of a run, under MMDetection's and Detectron2's names.

    Args:
        description: What the tool does.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="config file")
    parser.add_argument("--device", help="cpu, cuda or cuda:<index> (default: the config's, else CUDA if present)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action="extend",  # given twice, both count
        default=[],
        metavar="KEY=VALUE",
        help="override config values; +KEY=VALUE adds",
    )
    parser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        help="what started this process (default: pytorch under torchrun, else the config's, else none)",
    )
    group.add_argument("--num-processes", type=int, default=1, help="start as many on this machine, one per GPU")
    group.add_argument("--num-machines", type=int, default=1, help="of which each is given --num-processes")
    group.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    group.add_argument("--dist-url", metavar="tcp://HOST:PORT", help="address of machine 0, where there are several")
    # torch.distributed.launch passes it; the environment says the same.
    group.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser
