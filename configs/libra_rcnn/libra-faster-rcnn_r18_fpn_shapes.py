"""Libra R-CNN, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/1904.02701

python tools/train.py configs/libra_rcnn/libra-faster-rcnn_r18_fpn_shapes.py

bbox mAP 0.60 on the 250 validation images (docs/methods.md).
"""

_base_ = "../faster_rcnn/faster-rcnn_r18_fpn_shapes.py"

model = dict(
    neck=[
        dict(
            type="FPN",
            in_channels=[32, 64, 128],
            out_channels=64,
            num_outs=3,
            norm_cfg=dict(type="BN", requires_grad=True),
        ),
        dict(type="BFP", in_channels=64, num_levels=3, refine_level=1, refine_type="non_local"),
    ],
    roi_head=dict(
        bbox_head=dict(
            loss_bbox=dict(_delete_=True, type="BalancedL1Loss", alpha=0.5, gamma=1.5, beta=1.0, loss_weight=1.0)
        )
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(neg_pos_ub=5)),
        rcnn=dict(
            sampler=dict(
                _delete_=True,
                type="CombinedSampler",
                num=64,
                pos_fraction=0.25,
                add_gt_as_proposals=True,
                pos_sampler=dict(type="InstanceBalancedPosSampler"),
                neg_sampler=dict(type="IoUBalancedNegSampler", floor_thr=-1, floor_fraction=0, num_bins=3),
            )
        ),
    ),
)
