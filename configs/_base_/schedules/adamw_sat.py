# AdamW with a batch size of 256 and cosine decay per iteration. As published, weight decay applies to position
# embeddings and tokens, but not to norms and biases. The published code creates the cosine schedule without applying
# it; param_scheduler=[] reproduces this.
max_epochs = 30
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, T_max=max_epochs, convert_to_iter_based=True)
]
auto_scale_lr = dict(enable=False, base_batch_size=256)
