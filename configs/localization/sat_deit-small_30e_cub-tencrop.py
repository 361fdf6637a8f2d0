# Tested as in the SAT paper: the map of a center crop of 224 of 256 pixels at a threshold of 0.4, the class by ten
# crops.
_base_ = "./sat_deit-small_30e_cub-224.py"

test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(256, 256)),
    dict(type="visionattn.TenCrop", size=224),
    dict(type="visionattn.PackLocalizationInputs"),
]
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_evaluator = [dict(type="visionattn.SATLocalizationMetric", resize=256, crop=224)]
