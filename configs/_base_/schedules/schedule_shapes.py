"""Runtime and schedule of the example data: 32 epochs of AdamW from scratch, warm-up, half a cosine.

Takes default_runtime.py, whose hooks it sets; a config needs no other base beside its data.
"""

_base_ = "../default_runtime.py"

max_epochs = 32
interval = max(1, max_epochs // 3)  # epochs between validations and checkpoints

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=interval)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type="CosineAnnealingLR",
        by_epoch=True,
        begin=0,
        end=max_epochs,
        T_max=max_epochs,
        eta_min_ratio=0.01,
        convert_to_iter_based=True,
    ),
]
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=4e-3, weight_decay=0.05, fused=True),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(interval=interval, save_best="coco/bbox_mAP"),
)
custom_hooks = [dict(type="ChannelsLastHook")]
