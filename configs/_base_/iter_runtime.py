# Runtime settings for mmdet's long schedules that count iterations.
_base_ = "./epoch_runtime.py"
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000))
log_processor = dict(by_epoch=False)
