_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k_512.py",
    "../../_base_/schedules/adamw_160k.py",
    "../../_base_/seg_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_tiny.in1k", drop_path_rate=0.3, dilations="segmentation"),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
