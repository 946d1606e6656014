"""Several processes: starting them, their groups, and collectives on plain objects."""

from detkit.engine.distributed.collectives import (
    all_gather,
    broadcast,
    gather,
    reduce_dict,
    shared_random_seed,
    synchronize,
)
from detkit.engine.distributed.groups import (
    get_cpu_group,
    get_local_group,
    get_local_rank,
    get_local_size,
    get_rank,
    get_world_size,
    is_distributed,
    is_main_process,
)
from detkit.engine.distributed.init import destroy, infer_launcher, init_distributed
from detkit.engine.distributed.launch import find_free_port, launch

__all__ = [
    "all_gather",
    "broadcast",
    "destroy",
    "find_free_port",
    "gather",
    "get_cpu_group",
    "get_local_group",
    "get_local_rank",
    "get_local_size",
    "get_rank",
    "get_world_size",
    "infer_launcher",
    "init_distributed",
    "is_distributed",
    "is_main_process",
    "launch",
    "reduce_dict",
    "shared_random_seed",
    "synchronize",
]
