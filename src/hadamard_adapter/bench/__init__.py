"""Experiments as data: a spec in TOML, one JSON file a run, and what runs them."""
