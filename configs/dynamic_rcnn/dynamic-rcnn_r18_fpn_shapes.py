"""Dynamic R-CNN, half-width ResNet-18 FPN, on the embedded example data. https://arxiv.org/abs/2004.06002

python tools/train.py configs/dynamic_rcnn/dynamic-rcnn_r18_fpn_shapes.py

bbox mAP 0.57 on the 250 validation images (docs/methods.md).
"""

_base_ = "../faster_rcnn/faster-rcnn_r18_fpn_shapes.py"

model = dict(
    roi_head=dict(
        type="DynamicRoIHead",
        bbox_head=dict(loss_bbox=dict(_delete_=True, type="SmoothL1Loss", beta=1.0, loss_weight=1.0)),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms=dict(iou_threshold=0.85)),
        rcnn=dict(
            # Of 150 proposals; an image has one to five objects.
            dynamic_rcnn=dict(iou_topk=10, beta_topk=5, update_iter_interval=25, initial_iou=0.4, initial_beta=1.0),
        ),
    ),
    test_cfg=dict(rpn=dict(nms=dict(iou_threshold=0.85))),
)
