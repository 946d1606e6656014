"""Running: the runner, its loops, hooks, optimizers and checkpoints.

From the top, each importing only from those below it:

- ``run``: the runner, the builders and checks of its parts, training loops, the step, replay of a step;
- ``resuming``: which checkpoint a run goes on from, and what of its state is kept;
- ``hooks``: what acts at the stages of a run;
- ``evaluation``: validation and test;  ``diagnosis``: a step that went wrong;  ``reporting``: what a run says;
- ``model``: what is changed in the model;  ``optim``, ``schedulers``: how it is updated;
- ``data``: loaders, seeds, labels;  ``parallel``: what several processes wrap around a model;
- ``distributed``: the processes of a run, and what they tell each other;
- ``environment``: device, folder, versions.  ``cli``: what the command-line tools share.
"""

from detkit.checkpoints import load_checkpoint_file, load_weights, open_checkpoint, save_checkpoint_file
from detkit.engine.data.data_stream import DataStream, Position
from detkit.engine.data.dataloader import build_dataloader
from detkit.engine.data.labels import label_map
from detkit.engine.data.seeding import derive_seed, seed_everything
from detkit.engine.distributed import launch
from detkit.engine.environment import select_device
from detkit.engine.evaluation.base_loop import build_evaluator, evaluation_mode
from detkit.engine.evaluation.loops import MultiDatasetTestLoop, MultiDatasetValLoop, TestLoop, ValLoop
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
    PipelineSwitchHook,
    PreciseBNHook,
    Preempted,
    PreemptionHook,
    RuntimeInfoHook,
    SetEpochInfoHook,
    SWAHook,
    SyncNormHook,
    TorchProfilerHook,
    YOLOXModeSwitchHook,
)
from detkit.engine.model.activation_checkpointing import checkpoint_activations
from detkit.engine.model.compilation import compile_model
from detkit.engine.optim import (
    AmpOptimWrapper,
    DefaultOptimWrapperConstructor,
    LearningRateDecayOptimizerConstructor,
    OptimWrapper,
    build_optim_wrapper,
)
from detkit.engine.reporting.log_processor import LogProcessor
from detkit.engine.run.auto_scale import auto_scale_cfg
from detkit.engine.run.dry_run import dry_run
from detkit.engine.run.loops import EpochBasedTrainLoop, IterBasedTrainLoop
from detkit.engine.run.parts import RunLength, build_initialized_model, evaluate, run_length
from detkit.engine.run.runner import Runner
from detkit.engine.run.train_step import train_step
from detkit.engine.schedulers import LRMultiplier, Multiplier, build_schedulers, restore_schedulers, schedulers_state

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
    "PipelineSwitchHook",
    "Position",
    "PreciseBNHook",
    "Preempted",
    "PreemptionHook",
    "RunLength",
    "Runner",
    "RuntimeInfoHook",
    "SWAHook",
    "SetEpochInfoHook",
    "SyncNormHook",
    "TestLoop",
    "TorchProfilerHook",
    "ValLoop",
    "YOLOXModeSwitchHook",
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
