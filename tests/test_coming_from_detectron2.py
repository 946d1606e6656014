"""docs/coming_from_detectron2.md: nothing of Detectron2's engine is missing, and all that it names is here."""

import re
from pathlib import Path

import pytest
from documented import check
from torch import nn
from torch.optim import SGD

from detkit.arguments import default_argument_parser
from detkit.config import load
from detkit.engine import auto_scale_cfg, build_optim_wrapper
from detkit.registry import HOOKS, PARAM_SCHEDULERS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/coming_from_detectron2.md").read_text()
ROWS = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in PAGE.splitlines() if line.startswith("| `")]

_NAMES = """
create_ddp_model default_argument_parser default_setup default_writers DefaultPredictor DefaultTrainer
DefaultTrainer.__init__ DefaultTrainer.resume_or_load DefaultTrainer.build_hooks DefaultTrainer.build_writers
DefaultTrainer.train DefaultTrainer.run_step DefaultTrainer.state_dict DefaultTrainer.load_state_dict
DefaultTrainer.build_model DefaultTrainer.build_optimizer DefaultTrainer.build_lr_scheduler
DefaultTrainer.build_train_loader DefaultTrainer.build_test_loader DefaultTrainer.build_evaluator DefaultTrainer.test
DefaultTrainer.auto_scale_workers HookBase TrainerBase.__init__ TrainerBase.register_hooks TrainerBase.train
TrainerBase.before_train TrainerBase.after_train TrainerBase.before_step TrainerBase.after_backward
TrainerBase.after_step TrainerBase.run_step TrainerBase.state_dict TrainerBase.load_state_dict SimpleTrainer.__init__
SimpleTrainer.run_step SimpleTrainer._data_loader_iter SimpleTrainer.reset_data_loader SimpleTrainer._write_metrics
SimpleTrainer.write_metrics NaN:semantics async_write_metrics SimpleTrainer.state_dict AMPTrainer.__init__
AMPTrainer.run_step AMPTrainer.state_dict tools/plain_train_net.py CallbackHook IterationTimer PeriodicWriter
PeriodicCheckpointer BestCheckpointer LRScheduler LRScheduler.get_best_param_group_id TorchProfiler AutogradProfiler
EvalHook EvalHook._do_eval PreciseBN TorchMemoryStats DEFAULT_TIMEOUT _find_free_port launch _distributed_worker
Checkpointer.__init__ Checkpointer.save Checkpointer.load Checkpointer.has_checkpoint Checkpointer.get_checkpoint_file
Checkpointer.get_all_checkpoint_files Checkpointer.resume_or_load Checkpointer.tag_last_checkpoint
Checkpointer._load_model DetectionCheckpointer.__init__ DetectionCheckpointer.load DetectionCheckpointer._load_file
DetectionCheckpointer._torch_load DetectionCheckpointer._load_model align_and_update_state_dicts
convert_basic_c2_names convert_c2_detectron_names GradientClipType _create_gradient_clipper
_generate_optimizer_class_with_gradient_clipping maybe_add_gradient_clipping build_optimizer
get_default_optimizer_params _expand_param_groups reduce_param_groups build_lr_scheduler WarmupParamScheduler
LRMultiplier scheduler.step:in:the:last:iteration WarmupMultiStepLR WarmupCosineLR _get_warmup_factor_at_iter
ParamScheduler get_world_size get_rank is_main_process create_local_process_group get_local_process_group
get_local_rank get_local_size synchronize _get_global_gloo_group all_gather gather shared_random_seed reduce_dict
get_event_storage has_event_storage EventStorage HistoryBuffer EventWriter JSONWriter TensorboardXWriter
CommonMetricPrinter RetinaNet.losses RPN.losses FastRCNNOutputLayers.losses _dense_box_regression_loss
sigmoid_focal_loss smooth_l1_loss giou_loss diou_loss ciou_loss
"""
THEIRS = _NAMES.split()


def test_every_part_of_their_engine_has_one_line():
    # Stored without spaces; on the page "NaN semantics" has one.
    assert [re.match("`([^`]+)`", theirs)[1].replace(" ", ":") for theirs, _, _ in ROWS] == THEIRS


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_what_the_page_names_is_here(row):
    names = re.findall("`([^`]+)`", row[1])
    assert names
    assert row[2]
    for name in names:
        check(name)


@pytest.mark.parametrize("wrong", ["detkit.engine.Runner.trian", "LogerHook", "LoggerHook(intervall=2)", "tools/no.py"])
def test_a_wrong_name_would_be_found(wrong):
    with pytest.raises((AssertionError, AttributeError)):
        check(wrong)


def test_flags_of_the_page_and_of_the_readme_exist():
    tools = (ROOT / "tools/train.py").read_text() + default_argument_parser("").format_help()
    ours = [cell for row in ROWS for cell in row[1:]] + re.findall(r"`(python [^`]*)`", PAGE)
    ours.append((ROOT / "README.md").read_text())
    flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(ours))) - {"--num-gpus", "--checkpoint"}
    assert {"--resume", "--num-processes", "--auto-scale-lr"} <= flags
    assert [flag for flag in sorted(flags) if flag not in tools] == []


def test_the_config_builds(tmp_path):
    text = re.search(r"```python\n# config\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    path = tmp_path / "mine.py"
    path.write_text(text.replace('"retinanet/', f'"{ROOT}/configs/retinanet/'))
    cfg = load(path)
    assert auto_scale_cfg(cfg, 8).train_cfg.max_iters == 90_000
    scaled = auto_scale_cfg(cfg, 4)
    assert [scaled.train_cfg.max_iters, scaled.optim_wrapper.optimizer.lr] == [180_000, 0.005]
    assert scaled.param_scheduler.milestones == [120_000, 160_000]
    assert HOOKS.build(cfg.default_hooks.checkpoint).interval == 5000
    assert HOOKS.build(cfg.custom_hooks[0]).num_iters == 200
    model = nn.Linear(2, 1)
    wrapper = build_optim_wrapper(model, {**cfg.optim_wrapper, "dtype": "bfloat16"})  # as it runs on a CPU
    assert wrapper.optimizer.param_groups[0]["lr"] == 0.01
    schedule = PARAM_SCHEDULERS.build(
        {**cfg.param_scheduler, "end": cfg.train_cfg.max_iters},
        default_args={"optimizer": SGD(model.parameters(), lr=0.01)},
    )
    assert schedule.get_last_value() == [pytest.approx(0.01 * 0.001)]
