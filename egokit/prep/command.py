"""`egokit prep`: prepare the data of a site, here or as jobs, and print what was done."""
import json
import os
import sys

from egokit import prep as preparation
from egokit.config.build import ConfigError, merge
from egokit.config.resolve import expect_own_site, parse_overrides, resolve
from egokit.prep.narrations import nlq_narrations
from egokit.prep.source import site_options


def prepare(arguments) -> None:
    """Prepare what the arguments of the command line name; the exit code is 1 if a part could not be prepared."""
    overrides = parse_overrides(arguments.overrides)
    if arguments.root:
        overrides = merge(overrides, {"site": {"root": os.path.abspath(arguments.root)}})
    expect_own_site(resolve(arguments.params, arguments.site).site, overrides.get("site", {}), arguments.source)
    config = resolve(arguments.params, arguments.site, overrides)
    if arguments.wait and not arguments.array:
        raise ConfigError("--wait waits for an array of jobs: give --array N, too")
    if arguments.what != "ego4d" and (arguments.shard or arguments.array or arguments.source):
        raise ConfigError("--source, --shard and --array are for Ego4D only: egokit prep ego4d …")
    given = {name: value for name in ("clip_seconds", "every", "videos") if (value := getattr(arguments, name))}
    if given and arguments.what != "nlq-narrations":
        raise ConfigError("--clip-seconds, --every and --videos are for narrations only: egokit prep nlq-narrations …")
    try:
        if arguments.what == "nlq-narrations":
            return print(json.dumps(nlq_narrations(config, **given), indent=1))
        if arguments.what != "ego4d":
            parts = () if arguments.what == "all" else (arguments.what,)
            return print(json.dumps(preparation.prepare(config, parts=parts), indent=1))
        if arguments.array:
            array = preparation.submit_array(config, arguments.array, arguments.source)
            print(array or "nothing to submit: every video is verified")
            if not array or not arguments.wait:
                return
            summary = array.wait()
        else:
            summary = preparation.ego4d(**site_options(config.site), source=arguments.source, shard=arguments.shard)
    except preparation.PrepError as error:  # no mistake in the command: data that can't be prepared
        print(f"egokit: {error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps({key: value for key, value in summary.items() if key != "lines"}, indent=1))
    sys.exit(1 if summary["failed"] or summary["pending"] else 0)
