"""One package per job (task), such as object detection or forgery detection; see `visionattn.inference.job`."""
