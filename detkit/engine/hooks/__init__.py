"""What happens at fixed points of a run."""

from detkit.engine.hooks.checkpoint import CheckpointHook
from detkit.engine.hooks.hook import Hook
from detkit.engine.hooks.invalid_loss import CheckInvalidLossHook
from detkit.engine.hooks.iter_timer import IterTimerHook
from detkit.engine.hooks.logger import LoggerHook
from detkit.engine.hooks.memory_format import ChannelsLastHook
from detkit.engine.hooks.param_scheduler import ParamSchedulerHook
from detkit.engine.hooks.preemption import Preempted, PreemptionHook
from detkit.engine.hooks.runtime_info import RuntimeInfoHook
from detkit.engine.hooks.visualization import DetVisualizationHook

__all__ = [
    "ChannelsLastHook",
    "CheckInvalidLossHook",
    "CheckpointHook",
    "DetVisualizationHook",
    "Hook",
    "IterTimerHook",
    "LoggerHook",
    "ParamSchedulerHook",
    "Preempted",
    "PreemptionHook",
    "RuntimeInfoHook",
]
