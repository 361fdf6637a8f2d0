# The authors published only the config for tiny; its drop path rate is also used for this size.
_base_ = [
    "../../_base_/models/mask-rcnn_fpn.py",
    "../../_base_/datasets/coco_instance_ms.py",
    "../../_base_/schedules/adamw_1x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(model_name="davit_small.msft_in1k", drop_path_rate=0.1),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(paramwise_cfg=None)  # published: weight decay for all parameters
