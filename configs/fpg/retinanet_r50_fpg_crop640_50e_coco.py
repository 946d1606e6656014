"""RetinaNet with a feature pyramid grid, ResNet-50, 640 x 640, 50 epochs on COCO. https://arxiv.org/abs/2004.03580

    python tools/train.py configs/fpg/retinanet_r50_fpg_crop640_50e_coco.py

8 GPUs x 8 images. Not trained here yet; state dict and neck equal MMDetection's (tests/configs, tests/models).
"""

_base_ = "../nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py"
conv = dict(norm_cfg=_base_.norm_cfg, inplace=False, order=("act", "conv", "norm"))
model = dict(
    neck=dict(
        _delete_=True,
        type="FPG",
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        inter_channels=256,
        num_outs=5,
        add_extra_convs=True,
        start_level=1,
        stack_times=9,
        paths=["bu"] * 9,
        same_down_trans=None,
        same_up_trans=dict(type="conv", kernel_size=3, stride=2, padding=1, **conv),
        across_lateral_trans=dict(type="conv", kernel_size=1, **conv),
        across_down_trans=dict(type="interpolation_conv", mode="nearest", kernel_size=3, **conv),
        across_up_trans=None,
        across_skip_trans=dict(type="conv", kernel_size=1, **conv),
        output_trans=dict(type="last_conv", kernel_size=3, order=("act", "conv", "norm"), inplace=False),
        norm_cfg=_base_.norm_cfg,
        # The finest levels join late.
        skip_inds=[(0, 1, 2, 3), (0, 1, 2), (0, 1), (0,), ()],
    ),
)
train_cfg = dict(val_interval=2)
