_base_ = "./upernet_dinat-large_8xb2-160k_ade20k-640x640.py"
model = dict(backbone=dict(model_name="dinat_s_large.in22k"))
