# This combination has no published results.
_base_ = [
    "../../_base_/models/dino_4scale.py",
    "../../_base_/datasets/coco_detection_ms.py",
    "../../_base_/schedules/dino_12e.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_mini.in1k", drop_path_rate=0.2, dilations="detection"),
    neck=dict(in_channels=[128, 256, 512]),
)
