# nuScenes with ten aggregated sweeps; `visionattn data nuscenes` explains the layout. Objects for copy-paste
# augmentation:
#   visionattn data objects --layout nuscenes --source data/nuscenes --split data/nuscenes/train_scenes.txt \
#     --out data/nuscenes/objects.npz
data_root = "data/nuscenes"
metainfo = dict(
    classes=(
        "car",
        "truck",
        "construction_vehicle",
        "bus",
        "trailer",
        "barrier",
        "motorcycle",
        "bicycle",
        "pedestrian",
        "traffic_cone",
    )
)
point_cloud_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
augment = [
    dict(type="visionattn.PointFlip"),
    dict(type="visionattn.PointRotation"),
    dict(type="visionattn.PointScaling", scale=(0.9, 1.1)),
    dict(type="visionattn.PointTranslation", deviation=0.5),
    dict(type="visionattn.PointRangeFilter", point_cloud_range=point_cloud_range),
    dict(type="visionattn.PointShuffle"),
    dict(type="visionattn.PackPoints"),
]
paste = dict(
    type="visionattn.PasteObjects",
    database=data_root + "/objects.npz",
    up_to=dict(
        car=2,
        truck=3,
        construction_vehicle=7,
        bus=4,
        trailer=6,
        barrier=2,
        motorcycle=6,
        bicycle=6,
        pedestrian=2,
        traffic_cone=2,
    ),
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
        layout="nuscenes",
        data_root=data_root,
        ann_file="train_scenes.txt",
        metainfo=metainfo,
        columns=5,
        balanced=True,
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
        layout="nuscenes",
        data_root=data_root,
        ann_file="val_scenes.txt",
        metainfo=metainfo,
        columns=5,
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="visionattn.BEVDistanceMetric", all_classes=True)
test_evaluator = dict(type="visionattn.BEVDistanceMetric", all_classes=True, results_file="results_nusc.json")
