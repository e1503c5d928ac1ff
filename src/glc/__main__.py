"""`python -m glc`: the command line where the `glc` script is not on the path."""

from glc.cli import main

if __name__ == "__main__":
    main(prog_name="glc")
