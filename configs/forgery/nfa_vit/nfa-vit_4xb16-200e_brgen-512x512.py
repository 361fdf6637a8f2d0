# Set extractor to Noiseprint's DnCNN, and noise_pretrained and image_pretrained to SegFormer's MiT-b0 and MiT-b2.
_base_ = [
    "../../_base_/models/nfa-vit.py",
    "../../_base_/datasets/forgery_brgen_512.py",
    "../../_base_/forgery_epoch_runtime.py",
    "../../_base_/schedules/adamw_forgery_200e.py",
]
# Without weights, the extractor is trained together with the other parts.
model = dict(net=dict(freeze_extractor=False))
