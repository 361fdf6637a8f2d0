_base_ = "./cam_dinat-mini_30e_cub-224.py"
model = dict(backbone=dict(model_name="biformer_small.in1k"))
