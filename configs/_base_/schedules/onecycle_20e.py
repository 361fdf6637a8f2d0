# As onecycle_24e.py, but up from lr / 10 for two fifths of the run, and less weight decay. For 8 devices of 4 scans.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=20, val_interval=2)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.006, betas=(0.95, 0.99), weight_decay=0.03),
    clip_grad=dict(max_norm=10.0),
)
steps = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(type="OneCycleLR", eta_max=0.006, total_steps=20, pct_start=0.4, div_factor=10, final_div_factor=1e4, **steps),
    dict(type="CosineAnnealingMomentum", eta_min=0.85, begin=0, end=8, T_max=8, **steps),
    dict(type="CosineAnnealingMomentum", eta_min=0.95, begin=8, end=20, T_max=12, **steps),
]
