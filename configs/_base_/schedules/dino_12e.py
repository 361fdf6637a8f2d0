# 12 epochs of DINO with a batch size of 16 (arXiv 2203.03605) and a tenth of the learning rate for the backbone. The
# keys of position biases and norms of the backbone are long, because the longest matching key applies.
no_decay = dict(lr_mult=0.1, decay_mult=0.0)
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(
        custom_keys={
            "backbone": dict(lr_mult=0.1),
            "backbone.norm": no_decay,
            ".attn.rpb": no_decay,
            "patch_embed.norm": no_decay,
            "downsample.norm": no_decay,
            ".norm1.weight": no_decay,
            ".norm1.bias": no_decay,
            ".norm2.weight": no_decay,
            ".norm2.bias": no_decay,
        }
    ),
)
param_scheduler = [dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[11], gamma=0.1)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
