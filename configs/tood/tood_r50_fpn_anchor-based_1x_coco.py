"""TOOD with boxes encoded by anchors, ResNet-50 FPN, 12 epochs on COCO. https://arxiv.org/abs/2108.07755

    python tools/train.py configs/tood/tood_r50_fpn_anchor-based_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict and losses equal MMDetection's (tests/configs, tests/models).
"""

_base_ = "tood_r50_fpn_1x_coco.py"
model = dict(bbox_head=dict(anchor_type="anchor_based"))
