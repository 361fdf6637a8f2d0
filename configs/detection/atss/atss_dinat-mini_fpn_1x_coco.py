# This combination has no published results.
_base_ = [
    "../../_base_/models/atss_fpn.py",
    "../../_base_/datasets/coco_detection.py",
    "../../_base_/schedules/adamw_1x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_mini.in1k", drop_path_rate=0.2, dilations="detection"),
    neck=dict(in_channels=[128, 256, 512]),
)
