"""90,000 iterations of SGD for 8 GPUs x 2 images, Detectron2's 1x: warm-up over 1000, drops at 60,000 and 80,000.

Checkpoints are counted in epochs unless the config that takes this schedule says otherwise:
`default_hooks = dict(checkpoint=dict(interval=5000, by_epoch=False))`.
On another batch, `tools/train.py CONFIG --auto-scale-lr` scales all of it.
"""

train_cfg = dict(type="IterBasedTrainLoop", max_iters=90_000, val_interval=5000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = dict(
    type="LRMultiplier",
    multiplier=dict(
        type="WarmupMultiplier",
        multiplier=dict(type="MultiStepMultiplier", milestones=[60_000, 80_000], gamma=0.1),
        warmup_factor=0.001,
        warmup_iters=1000,
    ),
)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=0.0001))
auto_scale_lr = dict(enable=False, base_batch_size=16)
