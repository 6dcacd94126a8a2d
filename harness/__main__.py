"""`python -m harness`: what torchrun and a sweep's agent start."""

from harness.cli.main import main

if __name__ == "__main__":
    main()
