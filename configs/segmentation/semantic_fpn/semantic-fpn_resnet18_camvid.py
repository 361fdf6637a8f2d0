# CamVid with a ResNet-18 of timm, for comparison with semantic-fpn_dinat-pico_camvid: same head, data and recipe.
_base_ = "./semantic-fpn_dinat-pico_camvid.py"
model = dict(
    backbone=dict(_delete_=True, type="visionattn.Backbone", model_name="resnet18", out_indices=(1, 2, 3, 4)),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
