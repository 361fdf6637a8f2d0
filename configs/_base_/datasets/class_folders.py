# Folders with one subfolder of images per class, given by `custom_data`, resized to 224x224.
custom_data = dict(root="", train_img=None, train_boxes=None, val_img=None, val_boxes=None, classes="auto")
scale = (224, 224)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="visionattn.PackLocalizationInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale),
    dict(type="visionattn.PackLocalizationInputs"),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(type="visionattn.LocalizationDataset", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="visionattn.LocalizationDataset", test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
# centre_from is set to the folder of the training images if it has boxes.csv, for CentreBoxV2
val_evaluator = dict(type="visionattn.LocalizationMetric", centre_from=None)
test_evaluator = val_evaluator
