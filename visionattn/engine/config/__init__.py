"""Configs: loading, options, checks before a run, and data sets given by their folder."""
