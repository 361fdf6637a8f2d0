_base_ = [
    "../../_base_/models/cascade-mask-rcnn_fpn.py",
    "../../_base_/datasets/coco_instance_ms.py",
    "../../_base_/schedules/adamw_3x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_s_base.in1k", drop_path_rate=0.6, dilations="detection"),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(optimizer=dict(lr=7.5e-5))
