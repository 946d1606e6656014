"""Running: the runner, its loops, hooks, optimizers and checkpoints."""

from detkit.checkpoints import load_checkpoint_file, load_weights, open_checkpoint, save_checkpoint_file
from detkit.engine.activation_checkpointing import checkpoint_activations
from detkit.engine.auto_scale import auto_scale_cfg
from detkit.engine.compilation import compile_model
from detkit.engine.data_stream import DataStream, Position
from detkit.engine.dataloader import build_dataloader
from detkit.engine.distributed import launch
from detkit.engine.dry_run import dry_run
from detkit.engine.environment import select_device
from detkit.engine.evaluation import build_evaluator, evaluation_mode
from detkit.engine.evaluation_loops import MultiDatasetTestLoop, MultiDatasetValLoop, TestLoop, ValLoop
from detkit.engine.hooks import (
    CallbackHook,
    ChannelsLastHook,
    CheckInvalidLossHook,
    CheckpointHook,
    CudaMemoryHook,
    DetVisualizationHook,
    EarlyStoppingHook,
    EMAHook,
    EvalFunctionHook,
    ExpectedResultsHook,
    Hook,
    IterTimerHook,
    LoggerHook,
    MemoryProfilerHook,
    ParamSchedulerHook,
    PreciseBNHook,
    Preempted,
    PreemptionHook,
    RuntimeInfoHook,
    SWAHook,
    TorchProfilerHook,
)
from detkit.engine.labels import label_map
from detkit.engine.log_processor import LogProcessor
from detkit.engine.loops import EpochBasedTrainLoop, IterBasedTrainLoop
from detkit.engine.optim import (
    AmpOptimWrapper,
    DefaultOptimWrapperConstructor,
    LearningRateDecayOptimizerConstructor,
    OptimWrapper,
    build_optim_wrapper,
)
from detkit.engine.parts import RunLength, build_initialized_model, evaluate, run_length
from detkit.engine.runner import Runner
from detkit.engine.schedulers import LRMultiplier, Multiplier, build_schedulers, restore_schedulers, schedulers_state
from detkit.engine.seeding import derive_seed, seed_everything
from detkit.engine.train_step import train_step

__all__ = [
    "AmpOptimWrapper",
    "CallbackHook",
    "ChannelsLastHook",
    "CheckInvalidLossHook",
    "CheckpointHook",
    "CudaMemoryHook",
    "DataStream",
    "DefaultOptimWrapperConstructor",
    "DetVisualizationHook",
    "EMAHook",
    "EarlyStoppingHook",
    "EpochBasedTrainLoop",
    "EvalFunctionHook",
    "ExpectedResultsHook",
    "Hook",
    "IterBasedTrainLoop",
    "IterTimerHook",
    "LRMultiplier",
    "LearningRateDecayOptimizerConstructor",
    "LogProcessor",
    "LoggerHook",
    "MemoryProfilerHook",
    "MultiDatasetTestLoop",
    "MultiDatasetValLoop",
    "Multiplier",
    "OptimWrapper",
    "ParamSchedulerHook",
    "Position",
    "PreciseBNHook",
    "Preempted",
    "PreemptionHook",
    "RunLength",
    "Runner",
    "RuntimeInfoHook",
    "SWAHook",
    "TestLoop",
    "TorchProfilerHook",
    "ValLoop",
    "auto_scale_cfg",
    "build_dataloader",
    "build_evaluator",
    "build_initialized_model",
    "build_optim_wrapper",
    "build_schedulers",
    "checkpoint_activations",
    "compile_model",
    "derive_seed",
    "dry_run",
    "evaluate",
    "evaluation_mode",
    "label_map",
    "launch",
    "load_checkpoint_file",
    "load_weights",
    "open_checkpoint",
    "restore_schedulers",
    "run_length",
    "save_checkpoint_file",
    "schedulers_state",
    "seed_everything",
    "select_device",
    "train_step",
]
