# Runtime settings and metrics for forgery models; schedules count epochs.
custom_imports = dict(imports=["visionattn.openmmlab"], allow_failed_imports=False)
default_scope = "mmseg"
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", interval=5, max_keep_ckpts=2, save_best="pixel_f1", rule="greater"),
    sampler_seed=dict(type="DistSamplerSeedHook"),
)
val_evaluator = dict(type="visionattn.ForgeryMetric")
test_evaluator = dict(type="visionattn.ForgeryMetric", pooled=True)
vis_backends = [dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")]
visualizer = dict(type="SegLocalVisualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
log_level = "INFO"
load_from = None
resume = False
