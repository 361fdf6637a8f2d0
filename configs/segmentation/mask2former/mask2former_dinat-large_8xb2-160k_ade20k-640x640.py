_base_ = [
    "../../_base_/models/mask2former_semantic.py",
    "../../_base_/datasets/ade20k_512.py",
    "../../_base_/schedules/mask2former_160k.py",
    "../../_base_/seg_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_large_11x11.in22k", drop_path_rate=0.3, dilations="mask2former"),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="RandomChoiceResize", scales=[(2560, 64 * step) for step in range(5, 21)], keep_ratio=True),
    dict(type="RandomCrop", crop_size=(640, 640), cat_max_ratio=1.0),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(2560, 640), keep_ratio=True),
    dict(type="LoadAnnotations", reduce_zero_label=True),
    dict(type="PackSegInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
