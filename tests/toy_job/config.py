custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "visionattn"
model = dict(
    type="SquareCounter",
    backbone=dict(
        type="visionattn.Backbone", model_name="resnet10t", out_indices=(2,), channels=(8, 16, 16, 16), stem_width=8
    ),
)
pipeline = [dict(type="LoadImageFromFile"), dict(type="PackCount")]
dataset = dict(type="CountDataset", metainfo=dict(classes=("square",)), pipeline=pipeline)
train_dataloader = dict(
    batch_size=8, num_workers=0, sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(ann_file="train/counts.json", **dataset),
)  # fmt: skip
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(ann_file="val/counts.json", test_mode=True, **dataset),
)  # fmt: skip
test_dataloader = val_dataloader
val_evaluator = dict(type="CountError")
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=False, max_iters=60, val_interval=30)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=0.01))
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=10), checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=30)
)
log_processor = dict(by_epoch=False)
