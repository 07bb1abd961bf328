"""`vla-tune`, also as `python -m vla_tune` for launchers that start modules."""

from vla_tune.interrupts import at_once


def main() -> None:
    """The console script; Ctrl-C and SIGTERM are seen to before anything else is imported."""
    at_once()
    from vla_tune.cli import main as run

    run()


if __name__ == "__main__":
    main()
