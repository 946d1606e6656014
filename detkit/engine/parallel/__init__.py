"""One model in several processes: data parallelism, sharding, statistics of batches."""

from detkit.engine.parallel.buffers import sync_buffers
from detkit.engine.parallel.ddp import MMDistributedDataParallel
from detkit.engine.parallel.fsdp import FSDP, use_full_states
from detkit.engine.parallel.norms import convert_sync_batchnorm, revert_sync_batchnorm
from detkit.engine.parallel.wrap import wrap_model

__all__ = [
    "FSDP",
    "MMDistributedDataParallel",
    "convert_sync_batchnorm",
    "revert_sync_batchnorm",
    "sync_buffers",
    "use_full_states",
    "wrap_model",
]
