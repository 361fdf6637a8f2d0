# CATANet for factor 4, from the weights for factor 2: visionattn train NAME --partial --cfg-options load_from=FILE
_base_ = ["./catanet_x2_4xb16-800k_div2k.py"]
model = dict(scale=4)
train_dataloader = dict(dataset=dict(scale=4))
val_dataloader = dict(dataset=dict(scale=4))
test_dataloader = dict(dataset=dict(scale=4))
train_cfg = dict(max_iters=250_000)
param_scheduler = dict(milestones=[125_000, 200_000, 225_000, 237_500])
