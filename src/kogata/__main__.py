"""``python -m kogata`` is the command ``kogata``."""

from kogata.cli import main

main()
