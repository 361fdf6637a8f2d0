_base_ = [
    "../../_base_/models/cascade-mask-rcnn_fpn.py",
    "../../_base_/datasets/coco_instance_ms.py",
    "../../_base_/schedules/adamw_3x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_small.in1k", drop_path_rate=0.5, dilations="detection"),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
