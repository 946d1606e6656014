"""TridentNet, ResNet-50 (caffe) C4, 12 epochs on COCO. https://arxiv.org/abs/1901.01892

    python tools/train.py configs/tridentnet/tridentnet_r50-caffe_1x_coco.py

8 GPUs x 2 images. Not trained here yet; state dict equals MMDetection's (tests/configs).
"""

_base_ = "../faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py"
model = dict(
    type="TridentFasterRCNN",
    backbone=dict(
        type="TridentResNet",
        trident_dilations=(1, 2, 3),
        num_branch=3,
        # In prediction the middle branch alone; -1 asks all.
        test_branch_idx=1,
    ),
    roi_head=dict(type="TridentRoIHead", num_branch=3, test_branch_idx=1),
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=500),
        rcnn=dict(sampler=dict(num=128, pos_fraction=0.5, add_gt_as_proposals=False)),
    ),
)
