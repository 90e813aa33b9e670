"""`python -m quadpipe.cli`."""

from quadpipe.cli import main

main()
