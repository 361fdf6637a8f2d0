# Training from scratch on a CPU with forgeries synthesized from photographs. The input of the backbone has half the
# resolution, that of the noise branch full resolution.
_base_ = [
    "../../_base_/models/forgery-net.py",
    "../../_base_/datasets/forgery_synthetic.py",
    "../../_base_/schedules/adamw_iters.py",
    "../../_base_/forgery_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_pico", pretrained=None, dilations="auto"),
    noise="features",
    residual_maps=64,
    embed_dim=64,
    image_scale=0.5,
    compare_regions=True,
    noise_branch=dict(dims=(32, 48, 64, 96), depths=(1, 1, 1, 1)),
    loss=dict(dice_weight=0.3),
)
# About 80 minutes on one core (--amp: bfloat16); then continue with forgery-net_dinat-pico_synthetic-pairs.py.
max_iters = 5500
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=5.0))
train_cfg = dict(max_iters=max_iters, val_interval=1100)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-4, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
