"""`python -m r3core` is the command `r3`: what `accelerate launch -m r3core train` starts."""

from r3core.cli.main import main

if __name__ == "__main__":
    main()
