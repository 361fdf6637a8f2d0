# This combination has no published results.
_base_ = [
    "../../_base_/models/mask2former_semantic.py",
    "../../_base_/datasets/ade20k_512.py",
    "../../_base_/schedules/mask2former_160k.py",
    "../../_base_/seg_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_mini.in1k", drop_path_rate=0.2, dilations="segmentation"),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
)
