"""`python -m odesampler`: the command line without its script."""

from odesampler.cli import main

main()
