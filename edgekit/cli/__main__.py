"""python -m edgekit.cli, the same as edgekit."""

from edgekit.cli import main

main()
