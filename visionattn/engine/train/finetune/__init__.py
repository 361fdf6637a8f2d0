"""Fine-tuning: start from other weights, stop early, and layer-wise learning rates."""
