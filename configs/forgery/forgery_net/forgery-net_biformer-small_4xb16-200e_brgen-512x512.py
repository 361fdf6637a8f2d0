_base_ = [
    "../../_base_/models/forgery-net.py",
    "../../_base_/datasets/forgery_brgen_512.py",
    "../../_base_/forgery_epoch_runtime.py",
    "../../_base_/schedules/adamw_forgery_200e.py",
]
model = dict(backbone=dict(model_name="biformer_small", pretrained=True))
