"""Parts of drawings: colors, filled shapes, labels and legends; `visionattn.inference.draw` combines them."""
