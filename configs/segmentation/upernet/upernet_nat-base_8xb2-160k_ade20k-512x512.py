_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k_512.py",
    "../../_base_/schedules/adamw_160k.py",
    "../../_base_/seg_runtime.py",
]
model = dict(
    backbone=dict(model_name="nat_base.in1k", drop_path_rate=0.5),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
