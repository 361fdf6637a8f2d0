# The same backbone at full resolution with a plain segmentation head, for comparison: no noise branch.
_base_ = "./forgery-net_dinat-pico_synthetic.py"

model = dict(noise=None, noise_branch=None, image_scale=1.0)
