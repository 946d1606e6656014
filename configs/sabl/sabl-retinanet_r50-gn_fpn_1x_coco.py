"""SABL on RetinaNet with GN in the head, ResNet-50 FPN, 12 epochs on COCO. https://arxiv.org/abs/1912.04260

    python tools/train.py configs/sabl/sabl-retinanet_r50-gn_fpn_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict equals MMDetection's (tests/configs).
"""

_base_ = "sabl-retinanet_r50_fpn_1x_coco.py"
model = dict(bbox_head=dict(norm_cfg=dict(type="GN", num_groups=32, requires_grad=True)))
