# The authors published only the config for tiny; its drop path rate is also used for this size.
_base_ = [
    "../../_base_/models/upernet.py",
    "../../_base_/datasets/ade20k_512.py",
    "../../_base_/schedules/adamw_160k.py",
    "../../_base_/seg_runtime.py",
]
model = dict(
    backbone=dict(model_name="davit_small.msft_in1k", drop_path_rate=0.3),
    decode_head=dict(norm_cfg=dict(type="BN"), in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(norm_cfg=dict(type="BN"), in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=None)  # published: weight decay for all parameters
