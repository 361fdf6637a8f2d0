# Waymo scans as folders of points (x, y, z, intensity, elongation) with a JSON file of boxes each, see docs/lidar.md.
# Objects for copy-paste: `visionattn data objects --source data/waymo --split train --out data/waymo/objects.npz`.
data_root = "data/waymo"
metainfo = dict(classes=("vehicle", "pedestrian", "cyclist"))
point_cloud_range = [-76.8, -76.8, -2.0, 76.8, 76.8, 4.0]
augment = [
    dict(type="visionattn.PointFlip"),
    dict(type="visionattn.PointRotation"),
    dict(type="visionattn.PointScaling"),
    dict(type="visionattn.PointTranslation", deviation=0.5),
    dict(type="visionattn.PointRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="visionattn.PointShuffle"),
    dict(type="visionattn.PackPoints"),
]
paste = dict(
    type="visionattn.PasteObjects",
    database=data_root + "/objects.npz",
    up_to=dict(vehicle=15, pedestrian=10, cyclist=10),
)
# All labels are evaluated; the points outside the range are dropped with the voxels.
test_pipeline = [dict(type="visionattn.PackPoints")]
train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="visionattn.PointCloudDataset",
        layout="folder",
        data_root=data_root,
        data_prefix=dict(pts="train"),
        metainfo=metainfo,
        columns=5,
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
        layout="folder",
        data_root=data_root,
        data_prefix=dict(pts="val"),
        metainfo=metainfo,
        columns=5,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="visionattn.WaymoMetric", iou=dict(vehicle=0.7, pedestrian=0.5, cyclist=0.5))
test_evaluator = val_evaluator
