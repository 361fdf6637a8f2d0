"""Tracking of experiments with Weights & Biases and MLflow."""
