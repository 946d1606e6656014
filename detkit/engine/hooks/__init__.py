"""What happens at fixed points of a run."""

from detkit.engine.hooks.checkpoint import CheckpointHook
from detkit.engine.hooks.iter_timer import IterTimerHook
from detkit.engine.hooks.logger import CheckInvalidLossHook, LoggerHook
from detkit.engine.hooks.memory_format import ChannelsLastHook
from detkit.engine.hooks.runtime_info import RuntimeInfoHook
from detkit.engine.hooks.visualization import DetVisualizationHook

__all__ = [
    "ChannelsLastHook",
    "CheckInvalidLossHook",
    "CheckpointHook",
    "DetVisualizationHook",
    "IterTimerHook",
    "LoggerHook",
    "RuntimeInfoHook",
]
