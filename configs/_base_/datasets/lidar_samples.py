# Scans of a simulated LiDAR: `visionattn data lidar-samples --out data/lidar-samples`.
data_root = "data/lidar-samples"
metainfo = dict(classes=("car", "pedestrian", "cyclist"))
point_cloud_range = [-25.6, -25.6, -3.0, 25.6, 25.6, 1.0]
train_pipeline = [
    dict(type="visionattn.PointFlip"),
    dict(type="visionattn.PointRotation", angle=0.7854),
    dict(type="visionattn.PointScaling", scale=(0.95, 1.05)),
    dict(type="visionattn.PointTranslation", deviation=(0.2, 0.2, 0.1)),
    dict(type="visionattn.PointRangeFilter", point_cloud_range=point_cloud_range, least_points=5),
    dict(type="visionattn.PackPoints"),
]
test_pipeline = [
    dict(type="visionattn.PointRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="visionattn.PackPoints"),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="visionattn.PointCloudDataset",
        layout="folder",
        data_root=data_root,
        data_prefix=dict(pts="train"),
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="visionattn.PointCloudDataset",
        layout="folder",
        data_root=data_root,
        data_prefix=dict(pts="val"),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="visionattn.BEVMetric", iou=dict(car=0.5, pedestrian=0.25, cyclist=0.25))
test_evaluator = val_evaluator
