"""`python -m egokit.cli` is `egokit`."""
from egokit.cli import main

main()
