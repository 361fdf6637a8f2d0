# A segmentor small enough to be trained in a test; data_root is the folder of `shapes_dir`.
custom_imports = dict(imports=["visionattn.openmmlab"])
default_scope = "mmseg"
data_root = ""
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True, pad_val=0,
        seg_pad_val=255, size_divisor=32, test_cfg=dict(size_divisor=32)),
    backbone=dict(type="visionattn.Backbone", model_name="dinat_pico", depths=(1, 2, 2, 1),
                  dilations=[[1], [1, 1], [1, 1], [1]]),
    neck=dict(type="mmseg.FPN", in_channels=[32, 64, 128, 256], out_channels=32, num_outs=4),
    decode_head=dict(
        type="FPNHead", in_channels=[32] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32], channels=32,
        num_classes=3, norm_cfg=dict(type="BN", requires_grad=True), align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"))  # fmt: skip
metainfo = dict(classes=("red", "blue", "ground"), palette=[(255, 0, 0), (0, 0, 255), (90, 90, 90)])
load = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="BaseSegDataset",
        data_root=data_root,
        img_suffix=".png",
        seg_map_suffix=".png",
        metainfo=metainfo,
        data_prefix=dict(img_path="images", seg_map_path="maps"),
        pipeline=load,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="BaseSegDataset",
        data_root=data_root,
        img_suffix=".png",
        seg_map_suffix=".png",
        metainfo=metainfo,
        data_prefix=dict(img_path="images", seg_map_path="maps"),
        pipeline=load,
    ),
)
test_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_cfg = dict()
train_cfg = dict(by_epoch=False, max_iters=80)
optim_wrapper = dict(optimizer=dict(type="AdamW", lr=0.002, weight_decay=0.01), clip_grad=dict(max_norm=5.0))
param_scheduler = [dict(type="CosineAnnealingLR", by_epoch=False, begin=0, end=80, eta_min=1e-4)]
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=80))
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
