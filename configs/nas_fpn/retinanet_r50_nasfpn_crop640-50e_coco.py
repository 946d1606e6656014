"""RetinaNet with the pyramid of NAS-FPN, ResNet-50, 640 x 640, 50 epochs on COCO. https://arxiv.org/abs/1904.07392

    python tools/train.py configs/nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py

8 GPUs x 8 images. Not trained here yet; state dict and neck equal MMDetection's (tests/models).
"""

_base_ = "retinanet_r50_fpn_crop640-50e_coco.py"
model = dict(
    # Each level then has half the size of the one below.
    data_preprocessor=dict(pad_size_divisor=128),
    neck=dict(
        _delete_=True,
        type="NASFPN",
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        num_outs=5,
        stack_times=7,
        start_level=1,
        norm_cfg=_base_.norm_cfg,
    ),
)
