"""`python -m uproar`: the same as the command `uproar`."""

from uproar.cli import main

main(prog_name="uproar")
