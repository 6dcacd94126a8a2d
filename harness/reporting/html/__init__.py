"""Self-contained HTML pages of runs and sweeps, which need no network and no server.

`run_data` and `sweep_data` read a folder back; `facts`, `groups` and `galleries` prepare what is shown; `run_charts` and
`sweep_charts` make Plotly charts; `pages` fills the templates. Style and script of the page are in `templates/`.
"""
