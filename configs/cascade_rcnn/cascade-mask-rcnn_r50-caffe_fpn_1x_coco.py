"""Cascade Mask R-CNN, ResNet-50 (caffe) FPN, 12 epochs on COCO. https://arxiv.org/abs/1906.09756

    python tools/train.py configs/cascade_rcnn/cascade-mask-rcnn_r50-caffe_fpn_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict and losses equal MMDetection's (tests/configs, tests/models).
"""

_base_ = "./cascade-mask-rcnn_r50_fpn_1x_coco.py"

model = dict(
    data_preprocessor=dict(mean=[103.530, 116.280, 123.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False),
    # Detectron2's network: strides in the first 1x1 convolutions, images in BGR, scale and shift of norms frozen.
    backbone=dict(
        norm_cfg=dict(requires_grad=False),
        style="caffe",
        init_cfg=dict(checkpoint="open-mmlab://detectron2/resnet50_caffe"),
    ),
)
