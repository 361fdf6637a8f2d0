# 160,000 iterations of Mask2Former with a batch size of 16, polynomial decay, a tenth of the learning rate for the
# backbone and gradients clipped to a norm of 0.01 (arXiv 2112.01527). No weight decay for norms, position biases and
# embeddings; their keys in the backbone are long, because the longest matching key applies.
no_decay = dict(lr_mult=0.1, decay_mult=0.0)
embedding = dict(lr_mult=1.0, decay_mult=0.0)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=5000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
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
            "query_embed": embedding,
            "query_feat": embedding,
            "level_embed": embedding,
            "level_encoding": embedding,
        },
    ),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=160000)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
