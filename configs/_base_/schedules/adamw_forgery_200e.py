# The schedule of NFA-ViT: AdamW, 4 epochs of warm-up, cosine decay to 0 over 200 epochs, 4 devices with 16 images each.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=200, val_interval=20)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-4, by_epoch=True, begin=0, end=4, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=True, begin=4, end=200, T_max=196, convert_to_iter_based=True),
]
randomness = dict(seed=42)
