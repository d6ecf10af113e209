"""The configuration: how a recipe, a site and overrides become one frozen Config.

schema.py    every key once, with its type, bounds or choices, default and meaning
build.py     a section from plain values, strict on names and types, and back; comparison; ConfigError
registry.py  every task's name and class; a Config with the task's own keys
own_code.py  users' files with a task or a model;  init_forms.py  the forms of `init`
trust.py     which code in folders of others may be executed
json_file.py JSON files, read with bounds and checked for their shape
yaml_file.py YAML text, parsed with bounds
resolve.py   defaults <- site <- recipe <- overrides; the only module that reads YAML, through yaml_file.py
"""
