# SGD as published for fine-tuning PoseAwareVT: 15 epochs with a batch size of 64, steps after epochs 11 and 14.
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=15, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.005, momentum=0.9, weight_decay=1e-4))
param_scheduler = [dict(type="MultiStepLR", milestones=[11, 14], gamma=0.1, by_epoch=True)]
auto_scale_lr = dict(enable=False, base_batch_size=64)
