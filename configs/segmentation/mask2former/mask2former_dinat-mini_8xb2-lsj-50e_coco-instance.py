# This combination has no published results.
_base_ = [
    "../../_base_/models/mask2former_instance.py",
    "../../_base_/datasets/coco_instance_lsj.py",
    "../../_base_/schedules/mask2former_50e.py",
    "../../_base_/iter_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_mini.in1k", drop_path_rate=0.2, dilations="detection"),
    panoptic_head=dict(in_channels=[64, 128, 256, 512]),
)
