# The schedule of Mask2Former for COCO with large backbones: 737,500 iterations with a batch size of 16, or 100 epochs.
_base_ = "./mask2former_160k.py"
train_cfg = dict(max_iters=737500)
param_scheduler = [
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=737500, milestones=[655556, 710184], gamma=0.1)
]
