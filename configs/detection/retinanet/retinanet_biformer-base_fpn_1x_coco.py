_base_ = [
    "../../_base_/models/retinanet_fpn.py",
    "../../_base_/datasets/coco_detection.py",
    "../../_base_/schedules/adamw_1x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(model_name="biformer_base.in1k", drop_path_rate=0.3, num_regions=16, out_norm=True, norm_eval=True),
    neck=dict(in_channels=[192, 384, 768]),
)
optim_wrapper = dict(
    optimizer=dict(weight_decay=1e-4), paramwise_cfg=None
)  # published: weight decay for all parameters
