_base_ = [
    "../../_base_/models/mask-rcnn_fpn.py",
    "../../_base_/datasets/coco_instance_ms.py",
    "../../_base_/schedules/adamw_3x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(model_name="davit_tiny.msft_in1k", drop_path_rate=0.2),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=None)  # published: weight decay for all parameters
