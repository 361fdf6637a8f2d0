# As forgery-net_dinat-pico_photographs.py, with a smaller backbone, and the matches of each patch within the image, by
# which copied and moved regions are found (`visionattn.heads.forgery.matches`).
_base_ = "./forgery-net_dinat-pico_photographs.py"

model = dict(
    backbone=dict(_delete_=True, type="visionattn.Backbone", model_name="dinat_nano", out_indices=(0, 1, 2, 3)),
    matches=True,
)
