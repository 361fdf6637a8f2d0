# The schedule of Mask2Former for Cityscapes: 90,000 iterations with a batch size of 16.
_base_ = "./mask2former_160k.py"
train_cfg = dict(max_iters=90000)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=90000)]
