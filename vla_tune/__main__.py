"""`python -m vla_tune`: the same program as `vla-tune`, for launchers that start modules."""

from vla_tune.cli import main

if __name__ == "__main__":
    main()
