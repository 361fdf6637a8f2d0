# One-cycle AdamW: the learning rate increases from lr / 100 for a tenth of the epochs and decreases to lr / 1e6; the
# first beta goes from 0.95 to 0.85 and back. For 8 devices with 4 scans each.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=24, val_interval=2)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.006, betas=(0.95, 0.99), weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
steps = dict(by_epoch=True, convert_to_iter_based=True)
param_scheduler = [
    dict(
        type="OneCycleLR", eta_max=0.006, total_steps=24, pct_start=0.1, div_factor=100, final_div_factor=1e4, **steps
    ),
    dict(type="CosineAnnealingMomentum", eta_min=0.85, begin=0, end=2.4, T_max=2.4, **steps),
    dict(type="CosineAnnealingMomentum", eta_min=0.95, begin=2.4, end=24, T_max=21.6, **steps),
]
