"""Training and testing: runner, loops, hooks, resumption, progress, robustness tests."""
