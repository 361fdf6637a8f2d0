# Baseline: the same backbone at full resolution with a plain segmentation head and no noise branch.
_base_ = "./forgery-net_dinat-pico_synthetic.py"

model = dict(noise=None, noise_branch=None, image_scale=1.0)
