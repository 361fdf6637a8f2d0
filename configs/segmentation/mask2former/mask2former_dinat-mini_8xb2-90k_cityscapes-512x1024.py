# This combination has no published results.
_base_ = [
    "../../_base_/models/mask2former_semantic.py",
    "../../_base_/datasets/cityscapes_512x1024.py",
    "../../_base_/schedules/mask2former_90k.py",
    "../../_base_/seg_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_mini.in1k", drop_path_rate=0.2, dilations="segmentation"),
    decode_head=dict(
        in_channels=[64, 128, 256, 512],
        num_classes=19,
        loss_cls=dict(class_weight=[1.0] * 19 + [0.1]),
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomChoiceResize", scales=[(4096, round(102.4 * step)) for step in range(5, 21)], keep_ratio=True),
    dict(type="RandomCrop", crop_size=(512, 1024), cat_max_ratio=1.0),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
