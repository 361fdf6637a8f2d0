_base_ = "./cam_dinat-mini_30e_cub-224.py"
model = dict(backbone=dict(model_name="davit_tiny.msft_in1k"))
