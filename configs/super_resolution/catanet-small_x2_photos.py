# A small CATANet for factor 2 that is trained on photographs with a CPU: data_root, train_folder and val_folder are the
# variables to set.
_base_ = ["../_base_/datasets/photographs_sr.py", "../_base_/sr_runtime.py"]
model = dict(
    type="visionattn.SuperResolver",
    scale={{_base_.scale}},
    net=dict(
        dim=32,
        qk_dim=32,
        mlp_dim=64,
        heads=2,
        centers=(16, 32),
        group_sizes=(64, 64),
        windows=(8, 12),
        iterations=2,
    ),
)
max_iters = 12_000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=3000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=1e-3, betas=(0.9, 0.99)))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type="CosineAnnealingLR", eta_min=1e-5, by_epoch=False, begin=100, end=max_iters, T_max=max_iters - 100),
]
default_hooks = dict(checkpoint=dict(interval=250))
