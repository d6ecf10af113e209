"""The fuzz campaign by hand: thousands of mutated files of every kind, as tests/test_fuzz.py reads some hundred.

    python tests/fuzz_campaign.py [--count N] [--seed S] [KIND...]     # N files of each kind (default: 2000)
"""
import argparse
import os
import sys
from pathlib import Path

import pytest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="files of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="such as checkpoint or run (default: all)")
    arguments = parser.parse_args()
    os.environ |= {"EGOKIT_FUZZ_COUNT": str(arguments.count), "EGOKIT_FUZZ_SEED": str(arguments.seed)}
    test = Path(__file__).with_name("test_fuzz.py")
    tests = [f"{test}::test_mutated_files[{kind}]" for kind in arguments.kinds] or [str(test)]
    return pytest.main(["-q", "-n", "0", "-rP", "--tb=short", "-m", "slow or not slow", *tests])


if __name__ == "__main__":
    sys.exit(main())
