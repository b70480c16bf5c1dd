"""Configurations with the published constants of the data sets; see `dmic.config.load_config`."""
