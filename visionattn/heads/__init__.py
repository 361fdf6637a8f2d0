"""One package per job, such as detection or forgery detection; see `visionattn.inference.job`."""
