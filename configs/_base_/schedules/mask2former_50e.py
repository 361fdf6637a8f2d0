# The schedule of Mask2Former for COCO: 368,750 iterations with a batch size of 16, or 50 epochs.
_base_ = "./mask2former_160k.py"
train_cfg = dict(max_iters=368750)
param_scheduler = [
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=368750, milestones=[327778, 355092], gamma=0.1)
]
