"""`python -m edgekit`, which is what torchrun starts."""

from edgekit.cli import main

main()
