"""The commands of `harness`, grouped by purpose. They import what is heavy inside, so that `--help` is quick."""
