"""Running: the runner, its loops, hooks, optimizers and checkpoints."""

from detkit.checkpoints import load_checkpoint_file, load_weights, save_checkpoint_file
from detkit.engine.activation_checkpointing import checkpoint_activations
from detkit.engine.compilation import compile_model
from detkit.engine.distributed import launch
from detkit.engine.dry_run import dry_run
from detkit.engine.evaluation import MultiDatasetTestLoop, MultiDatasetValLoop, TestLoop, ValLoop
from detkit.engine.hooks import (
    CallbackHook,
    ChannelsLastHook,
    CheckInvalidLossHook,
    CheckpointHook,
    CudaMemoryHook,
    DetVisualizationHook,
    EarlyStoppingHook,
    EvalFunctionHook,
    ExpectedResultsHook,
    Hook,
    IterTimerHook,
    LoggerHook,
    MemoryProfilerHook,
    Preempted,
    PreemptionHook,
    RuntimeInfoHook,
    TorchProfilerHook,
)
from detkit.engine.log_processor import LogProcessor
from detkit.engine.loops import EpochBasedTrainLoop, IterBasedTrainLoop
from detkit.engine.optim import (
    AmpOptimWrapper,
    DefaultOptimWrapperConstructor,
    LearningRateDecayOptimizerConstructor,
    OptimWrapper,
)
from detkit.engine.runner import Runner

__all__ = [
    "AmpOptimWrapper",
    "CallbackHook",
    "ChannelsLastHook",
    "CheckInvalidLossHook",
    "CheckpointHook",
    "CudaMemoryHook",
    "DefaultOptimWrapperConstructor",
    "DetVisualizationHook",
    "EarlyStoppingHook",
    "EpochBasedTrainLoop",
    "EvalFunctionHook",
    "ExpectedResultsHook",
    "Hook",
    "IterBasedTrainLoop",
    "IterTimerHook",
    "LearningRateDecayOptimizerConstructor",
    "LogProcessor",
    "LoggerHook",
    "MemoryProfilerHook",
    "MultiDatasetTestLoop",
    "MultiDatasetValLoop",
    "OptimWrapper",
    "Preempted",
    "PreemptionHook",
    "Runner",
    "RuntimeInfoHook",
    "TestLoop",
    "TorchProfilerHook",
    "ValLoop",
    "checkpoint_activations",
    "compile_model",
    "dry_run",
    "launch",
    "load_checkpoint_file",
    "load_weights",
    "save_checkpoint_file",
]
