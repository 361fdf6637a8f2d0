# Schedule of CATANet (Liu et al., 2025): Adam without weight decay; the learning rate is halved at the milestones.
max_iters = 800_000
milestones = [300_000, 500_000, 650_000, 700_000, 750_000]
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=5000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=2e-4, betas=(0.9, 0.99)))
param_scheduler = dict(type="MultiStepLR", by_epoch=False, milestones=milestones, gamma=0.5)
randomness = dict(seed=3407)
