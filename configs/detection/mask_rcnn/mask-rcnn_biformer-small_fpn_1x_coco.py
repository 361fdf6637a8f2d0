_base_ = [
    "../../_base_/models/mask-rcnn_fpn.py",
    "../../_base_/datasets/coco_instance.py",
    "../../_base_/schedules/adamw_1x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(model_name="biformer_small.in1k", drop_path_rate=0.2, num_regions=16, out_norm=True, norm_eval=True),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
