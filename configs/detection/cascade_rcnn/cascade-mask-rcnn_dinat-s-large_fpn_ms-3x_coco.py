_base_ = [
    "../../_base_/models/cascade-mask-rcnn_fpn.py",
    "../../_base_/datasets/coco_instance_ms.py",
    "../../_base_/schedules/adamw_3x.py",
    "../../_base_/epoch_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_s_large.in22k", drop_path_rate=0.6, dilations="detection"),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
optim_wrapper = dict(optimizer=dict(lr=5e-5))
