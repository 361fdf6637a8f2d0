# A pose-aware attention block (PAAB) in place of the last block; it needs keypoints for predictions.
_base_ = "./timesformer_figures.py"
model = dict(backbone=dict(depth=2, paab=(2,)))
