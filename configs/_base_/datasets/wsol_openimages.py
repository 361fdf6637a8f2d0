# OpenImages30k, evaluated with masks (`visionattn data wsol` explains what to put into data/OpenImages).
_base_ = "./wsol_cub.py"
data_root = "data/OpenImages/"
train_dataloader = dict(dataset=dict(data_root=data_root, data_prefix=dict(mask_path="masks")))
val_dataloader = train_dataloader
test_dataloader = train_dataloader
val_evaluator = dict(_delete_=True, type="visionattn.LocalizationMetric")
test_evaluator = val_evaluator
