# The authors published only the config for tiny; its drop path rate is also used for this size.
_base_ = [
    "../../_base_/models/retinanet_fpn.py",
    "../../_base_/datasets/coco_detection_ms.py",
    "../../_base_/schedules/adamw_3x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(model_name="davit_base.msft_in1k", drop_path_rate=0.2),
    neck=dict(in_channels=[256, 512, 1024]),
)
optim_wrapper = dict(paramwise_cfg=None)  # published: weight decay for all parameters
