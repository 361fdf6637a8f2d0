# A Mask R-CNN small enough to be trained in a test; custom_data.root is the folder of `shapes_dir`.
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmdet"
custom_data = dict(root="", train_ann="train.json", val_ann="val.json")
model = dict(
    type="MaskRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.7, 116.3, 103.5],
        std=[58.4, 57.1, 57.4],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="visionattn.Backbone",
        model_name="dinat_pico",
        depths=(1, 2, 2, 1),
        out_indices=(0, 1, 2),
        dilations=[[1], [1, 1], [1, 1], [1]],
    ),
    neck=dict(type="FPN", in_channels=[32, 64, 128], out_channels=32, num_outs=3),
    rpn_head=dict(
        type="RPNHead",
        in_channels=32,
        feat_channels=32,
        anchor_generator=dict(type="AnchorGenerator", scales=[4], ratios=[1.0], strides=[4, 8, 16]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=32,
            featmap_strides=[4, 8, 16],
            finest_scale=20,
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=32,
            fc_out_channels=64,
            roi_feat_size=7,
            num_classes=2,
            bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
            reg_class_agnostic=True,
            loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=32,
            featmap_strides=[4, 8, 16],
            finest_scale=20,
        ),
        mask_head=dict(
            type="FCNMaskHead",
            num_convs=1,
            in_channels=32,
            conv_out_channels=32,
            num_classes=2,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.6,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type="RandomSampler", num=64, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(nms_pre=100, max_per_img=50, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.5,
                neg_iou_thr=0.5,
                min_pos_iou=0.5,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type="RandomSampler", num=32, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True),
            mask_size=14,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=20000, max_per_img=5000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=300, mask_thr_binary=0.5),
    ),
)
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True, with_mask=True)]
meta_keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="CocoDataset", pipeline=[*load, dict(type="PackDetInputs")]),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CocoDataset",
        test_mode=True,
        pipeline=[
            *load,
            dict(type="Resize", scale_factor=1.0, keep_ratio=True),
            dict(type="PackDetInputs", meta_keys=meta_keys),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", metric="segm")
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=False, max_iters=160, val_interval=1000)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=0.002, weight_decay=0.01), clip_grad=dict(max_norm=5.0))
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=160, eta_min=1e-4)]
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=160))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
