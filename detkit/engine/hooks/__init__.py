"""What happens at fixed points of a run."""

from detkit.engine.hooks.callback import CallbackHook
from detkit.engine.hooks.checkpoint import CheckpointHook
from detkit.engine.hooks.early_stopping import EarlyStoppingHook
from detkit.engine.hooks.ema import EMAHook
from detkit.engine.hooks.epoch_info import SetEpochInfoHook
from detkit.engine.hooks.eval_function import EvalFunctionHook
from detkit.engine.hooks.expected_results import ExpectedResultsHook
from detkit.engine.hooks.hook import Hook
from detkit.engine.hooks.invalid_loss import CheckInvalidLossHook
from detkit.engine.hooks.iter_timer import IterTimerHook
from detkit.engine.hooks.logger import LoggerHook
from detkit.engine.hooks.memory import CudaMemoryHook, MemoryProfilerHook
from detkit.engine.hooks.memory_format import ChannelsLastHook
from detkit.engine.hooks.param_scheduler import ParamSchedulerHook
from detkit.engine.hooks.pipeline_switch import PipelineSwitchHook, YOLOXModeSwitchHook
from detkit.engine.hooks.precise_bn import PreciseBNHook
from detkit.engine.hooks.preemption import Preempted, PreemptionHook
from detkit.engine.hooks.profiler import AutogradProfiler, TorchProfilerHook
from detkit.engine.hooks.runtime_info import RuntimeInfoHook
from detkit.engine.hooks.swa import SWAHook
from detkit.engine.hooks.sync_norm import SyncNormHook
from detkit.engine.hooks.visualization import DetVisualizationHook

__all__ = [
    "AutogradProfiler",
    "CallbackHook",
    "ChannelsLastHook",
    "CheckInvalidLossHook",
    "CheckpointHook",
    "CudaMemoryHook",
    "DetVisualizationHook",
    "EMAHook",
    "EarlyStoppingHook",
    "EvalFunctionHook",
    "ExpectedResultsHook",
    "Hook",
    "IterTimerHook",
    "LoggerHook",
    "MemoryProfilerHook",
    "ParamSchedulerHook",
    "PipelineSwitchHook",
    "PreciseBNHook",
    "Preempted",
    "PreemptionHook",
    "RuntimeInfoHook",
    "SWAHook",
    "SetEpochInfoHook",
    "SyncNormHook",
    "TorchProfilerHook",
    "YOLOXModeSwitchHook",
]
