# Runtime settings for detectors on point clouds; schedules count epochs.
_base_ = "./epoch_runtime.py"
default_scope = "mmengine"
visualizer = dict(type="Visualizer")
