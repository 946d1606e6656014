"""RepPoints on a grid in a predicted box, ResNet-50 FPN, GN, 12 epochs on COCO. https://arxiv.org/abs/1904.11490

    python tools/train.py configs/reppoints/reppoints-bbox_r50-center_fpn-gn_head-gn-grid_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict equals MMDetection's (tests/configs).
"""

_base_ = "reppoints-moment_r50_fpn-gn_head-gn_1x_coco.py"
model = dict(bbox_head=dict(transform_method="minmax", use_grid_points=True))
