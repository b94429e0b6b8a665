"""Configurations of training runs: files with a `get_config()`, known by name (`purinet train --config NAME`)."""
