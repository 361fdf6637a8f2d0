# From scratch on a CPU: forgeries made from any photographs. The backbone sees half the resolution, the noise all.
_base_ = [
    "../../_base_/models/forgery-net.py",
    "../../_base_/datasets/forgery_synthetic.py",
    "../../_base_/schedules/adamw_iters.py",
    "../../_base_/forgery_runtime.py",
]
model = dict(
    backbone=dict(model_name="dinat_pico", pretrained=None, dilations="auto"),
    embed_dim=64,
    image_scale=0.5,
    noise_branch=dict(dims=(32, 48, 64, 96), depths=(1, 1, 1, 1)),
    loss=dict(dice_weight=0.3),
)
# 20 minutes on one core, and the curve still rises: raise max_iters for a model to use.
max_iters = 1700
optim_wrapper = dict(optimizer=dict(lr=2e-3), clip_grad=dict(max_norm=5.0))
train_cfg = dict(max_iters=max_iters, val_interval=500)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-4, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
