"""Configs: loading, options, checks before a run, and datasets given by their folder."""
