"""The configuration: how a recipe, a site and overrides become one frozen Config.

schema.py   every key once, with its default, its bounds and its meaning
build.py    a Config from nested dicts, strict on names and types, and back; ConfigError
resolve.py  defaults <- site <- recipe <- overrides; the only module that reads YAML
"""
