# KITTI 3D objects; `visionattn data kitti` explains the layout. Only objects in the view of the camera are labeled.
# Objects for copy-paste augmentation: `visionattn data objects --layout kitti --source data/kitti --split train
#   --out data/kitti/objects.npz`.
data_root = "data/kitti"
metainfo = dict(classes=("Car", "Pedestrian", "Cyclist"))
point_cloud_range = [0.0, -39.68, -3.0, 69.12, 39.68, 1.0]
augment = [
    dict(type="visionattn.PointFlip", front_back=0.0),
    dict(type="visionattn.PointRotation"),
    dict(type="visionattn.PointScaling"),
    dict(type="visionattn.PointRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="visionattn.PointShuffle"),
    dict(type="visionattn.PackPoints"),
]
paste = dict(
    type="visionattn.PasteObjects",
    database=data_root + "/objects.npz",
    up_to=dict(Car=20, Pedestrian=15, Cyclist=15),
)
test_pipeline = [
    dict(type="visionattn.PointRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="visionattn.PackPoints"),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="visionattn.PointCloudDataset",
        layout="kitti",
        data_root=data_root,
        ann_file="ImageSets/train.txt",
        metainfo=metainfo,
        crop_to_view=True,
        pipeline=[paste, *augment],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.PointCloudDataset",
        layout="kitti",
        data_root=data_root,
        ann_file="ImageSets/val.txt",
        metainfo=metainfo,
        crop_to_view=True,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="visionattn.BEVMetric", least_height=(40, 25, 25))
test_evaluator = val_evaluator
