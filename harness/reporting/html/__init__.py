"""Pages that explain runs and sweeps: one HTML file each, which needs no network and no server.

`reading` finds out what a folder holds; `predictions`, `spread` and `sweeps` compute what is shown of it; `curves` and
`landscape` say it in Plotly's words; `pages` puts it together. The look and the little script are in `templates/`.
"""
