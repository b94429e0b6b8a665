"""Configurations of training runs: files with a `get_config()`, known by their names (`purinet train --config NAME`)."""
