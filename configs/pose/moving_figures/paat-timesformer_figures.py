# The auxiliary task (PAAT) after the first block: keypoints for training, none for predictions.
_base_ = "./timesformer_figures.py"
model = dict(backbone=dict(paat=(1,), num_joints=13))
