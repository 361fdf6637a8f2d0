# ELA (arXiv 2403.01123) in a ResNet-18 from random weights, small images of blood cells (BCCD):
# `visionattn data bccd --out data/bccd`. Without ELA: --cfg-options model.backbone.plugins=[]
_base_ = "./atss_dinat-pico_fpn_coco_custom.py"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomChoiceResize", scales=[(144, 108), (160, 120), (176, 132)], keep_ratio=True),
    dict(type="RandomFlip", prob=[0.3, 0.2], direction=["horizontal", "vertical"]),
    dict(type="PhotoMetricDistortion", brightness_delta=24, hue_delta=9),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(160, 120), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
model = dict(
    backbone=dict(model_name="resnet18", out_indices=(2, 3, 4), plugins=[dict(type="ela", variant="B")]),
    neck=dict(in_channels=[128, 256, 512]),
    bbox_head=dict(anchor_generator=dict(octave_base_scale=3)),
)
custom_data = dict(
    root="data/bccd",
    train_ann="instances_train.json",
    val_ann="instances_val.json",
    train_img="images/train",
    val_img="images/val",
)
max_iters = 400
train_cfg = dict(max_iters=max_iters, val_interval=200)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
