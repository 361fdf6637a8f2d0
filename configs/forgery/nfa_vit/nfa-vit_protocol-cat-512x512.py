# Protocol "CAT-Net": data/forgery/cat.json lists CASIAv2, FantasticReality, IMD20 and tampCOCO as
# [["ManiDataset", FOLDER], ["JsonDataset", FILE], ...]; 1840 images of each are used per epoch. Tested on
# Columbia, resized; other datasets with --cfg-options test_dataloader.dataset.data_root=FOLDER.
_base_ = "./nfa-vit_4xb16-200e_brgen-512x512.py"

train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="visionattn.BalancedForgeryDataset",
        ann_file="data/forgery/cat.json",
        sample_number=1840,
        pipeline={{_base_.train_pipeline}},
    )
)
val_dataloader = dict(dataset=dict(layout="mani", data_root="data/forgery/Columbia", balanced=False))
test_dataloader = dict(dataset=dict(layout="mani", data_root="data/forgery/Columbia", balanced=False))
