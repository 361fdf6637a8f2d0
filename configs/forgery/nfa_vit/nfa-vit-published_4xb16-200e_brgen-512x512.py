# As published, including the noise branch without gradient. For a released checkpoint: model.official_checkpoint=FILE.
_base_ = "./nfa-vit_4xb16-200e_brgen-512x512.py"

model = dict(net=dict(official=True, freeze_extractor=True))
