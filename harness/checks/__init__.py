"""Compare a run or a configuration with the written specification (`harness verify`), and diagnose a machine (`harness doctor`)."""
